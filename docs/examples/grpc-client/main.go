// Package main calls a function by Mayfly's gRPC API, with nothing but the generated client: what any program in any
// language with gRPC does.
//
// What belongs here: one call, as plain as it can be. What does not: what the mayfly command does already.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// admin is what the server wrote when it was first started. A program of yours would have a key of its own.
type admin struct {
	Endpoint string `json:"endpoint"`
	CA       string `json:"ca"`
	ID       string `json:"id"`
	Secret   string `json:"secret"`
}

func main() {
	file := flag.String("admin", "/var/lib/mayfly/server/admin.json", "file with endpoint, CA and key")
	payload := flag.String("payload", "{}", "the event, JSON")
	flag.Parse()
	if err := run(*file, flag.Arg(0), *payload); err != nil {
		fmt.Fprintln(os.Stderr, "grpc-client:", err)
		os.Exit(1)
	}
}

func run(file, function, payload string) error {
	if function == "" {
		return errors.New("usage: grpc-client [-admin FILE] [-payload JSON] FUNCTION")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the key: %w", err)
	}
	var a admin
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("read the key: %w", err)
	}
	answer, err := invoke(a, function, payload)
	if err != nil {
		return err
	}
	fmt.Println(answer)
	return nil
}

func invoke(a admin, function, payload string) (string, error) {
	// The server's certificate is signed by the cluster's own CA.
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(a.CA)) {
		return "", errors.New("the CA is no PEM certificate")
	}
	creds := credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
	conn, err := grpc.NewClient(a.Endpoint, grpc.WithTransportCredentials(creds))
	if err != nil {
		return "", fmt.Errorf("connect to %s: %w", a.Endpoint, err)
	}
	defer conn.Close()

	// The key travels with every call.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.ID+":"+a.Secret)

	r, err := mayflyv1.NewInvocationServiceClient(conn).Invoke(ctx, &mayflyv1.InvokeRequest{Function: function, Payload: []byte(payload)})
	if err != nil {
		return "", fmt.Errorf("invoke %s: %w", function, err)
	}
	// A function that fails is an answer, too.
	if r.GetFunctionError() != "" {
		return "", fmt.Errorf("%s failed: %s", function, r.GetPayload())
	}
	return string(r.GetPayload()), nil
}
