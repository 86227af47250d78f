// Command hello-go is a function in Go for the runtime provided.
package main

import (
	"context"
	"encoding/json"

	"github.com/aws/aws-lambda-go/lambda"
)

type response struct {
	StatusCode int    `json:"statusCode"`
	Body       string `json:"body"`
}

func hello(_ context.Context, _ json.RawMessage) (response, error) {
	body, err := json.Marshal("Hello World!")
	return response{StatusCode: 200, Body: string(body)}, err
}

func main() {
	lambda.Start(hello)
}
