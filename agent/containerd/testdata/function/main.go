// Command function is a custom runtime's bootstrap, written with the unmodified aws-lambda-go.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

func main() {
	lambda.Start(func(ctx context.Context, in map[string]string) (map[string]string, error) {
		switch in["do"] {
		case "fail":
			return nil, errors.New("as asked")
		case "exit":
			os.Exit(3)
		}
		lc, _ := lambdacontext.FromContext(ctx)
		return map[string]string{"hello": in["name"], "request": lc.AwsRequestID, "variable": os.Getenv("VARIABLE")}, nil
	})
}
