import json

def hello_world(event, context):
    response = {
        "statusCode": 200,
        "body": json.dumps('Hello World!')
    }
    return response
