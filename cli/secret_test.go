package cli_test

import (
	"testing"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func aSecret() *mayflyv1.Secret {
	return &mayflyv1.Secret{
		Meta: meta(7), Namespace: "default", Name: "db", Description: "of the shop", Version: 2, SizeBytes: 12, ValueRevision: 7,
	}
}

// secretFunction is hello with two references.
func secretFunction() *mayflyv1.Function {
	f := helloFunction()
	f.Configuration.SecretEnvironment, f.Configuration.SecretFiles = map[string]string{"DB": "db"}, []string{"cert"}
	return f
}

func newSecretBench(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	on(b.api, mayflyv1.SecretService_ListSecrets_FullMethodName, func(q *mayflyv1.ListSecretsRequest) (*mayflyv1.ListSecretsResponse, error) {
		if q.GetPageToken() == "" {
			return &mayflyv1.ListSecretsResponse{Secrets: []*mayflyv1.Secret{aSecret()}, NextPageToken: "next"}, nil
		}
		return &mayflyv1.ListSecretsResponse{Secrets: []*mayflyv1.Secret{{Meta: meta(9), Name: "cert", Version: 1, SizeBytes: 2048}}}, nil
	})
	on(b.api, mayflyv1.SecretService_GetSecret_FullMethodName, func(q *mayflyv1.GetSecretRequest) (*mayflyv1.GetSecretResponse, error) {
		if q.GetName() != "db" {
			return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND, "there is no secret %q", q.GetName())
		}
		return &mayflyv1.GetSecretResponse{Secret: aSecret(), Functions: []string{"hello", "other"}}, nil
	})
	on(b.api, mayflyv1.SecretService_CreateSecret_FullMethodName, func(*mayflyv1.CreateSecretRequest) (*mayflyv1.CreateSecretResponse, error) {
		return &mayflyv1.CreateSecretResponse{Secret: aSecret()}, nil
	})
	on(b.api, mayflyv1.SecretService_UpdateSecret_FullMethodName, func(*mayflyv1.UpdateSecretRequest) (*mayflyv1.UpdateSecretResponse, error) {
		return &mayflyv1.UpdateSecretResponse{Secret: aSecret()}, nil
	})
	on(b.api, mayflyv1.SecretService_DeleteSecret_FullMethodName, func(q *mayflyv1.DeleteSecretRequest) (*mayflyv1.DeleteSecretResponse, error) {
		if !q.GetForce() {
			return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "secret %q can't be deleted: function hello refers to it", q.GetName())
		}
		return &mayflyv1.DeleteSecretResponse{}, nil
	})
	on(b.api, mayflyv1.SecretService_GetSecretValue_FullMethodName, func(*mayflyv1.GetSecretValueRequest) (*mayflyv1.GetSecretValueResponse, error) {
		return &mayflyv1.GetSecretValueResponse{Value: []byte("p4ss\n"), Version: 2}, nil
	})
	on(b.api, mayflyv1.FunctionService_GetFunction_FullMethodName, func(*mayflyv1.GetFunctionRequest) (*mayflyv1.GetFunctionResponse, error) {
		return &mayflyv1.GetFunctionResponse{Function: secretFunction()}, nil
	})
	on(b.api, mayflyv1.FunctionService_UpdateFunctionConfiguration_FullMethodName, func(*mayflyv1.UpdateFunctionConfigurationRequest) (*mayflyv1.UpdateFunctionConfigurationResponse, error) {
		return &mayflyv1.UpdateFunctionConfigurationResponse{Function: secretFunction()}, nil
	})
	return b
}

func TestSecretCommands(t *testing.T) {
	b := newSecretBench(t)
	file := b.file("value", "of a file\n")
	b.transcript("secret", [][]string{
		{"secret", "list"},
		{"secret", "list", "--quiet", "--namespace", "shop"},
		{"secret", "get", "db"},
		{"secret", "get", "db", "--output", "json"},
		{"secret", "get", "nope"},
		{"secret", "create", "db", "--value-file", file, "--description", "of the shop"},
		{"secret", "create", "db", "--value", "typed", "--output", "yaml"},
		{"secret", "create", "db", "--value", ""},
		{"secret", "create", "db"},
		{"secret", "create", "db", "--value", "a", "--value-file", file},
		{"secret", "create", "db", "--value-file", file + ".missing"},
		{"secret", "create", "--value", "a"},
		{"secret", "update", "db", "--value-file", file, "--expected-revision", "7"},
		{"secret", "update", "db", "--description", ""},
		{"secret", "update", "db"},
		{"secret", "delete", "db"},
		{"secret", "delete", "db", "--force", "--expected-revision", "7"},
		{"secret", "get-value", "db"},
		{"secret", "get-value", "db", "--output", "json"},
		{"function", "get", "hello"},
		{"function", "update", "hello", "--secret", "API=token", "--secret-file", "key", "--secret-file", "cert"},
		{"function", "update", "hello", "--remove-secret", "db", "--memory", "256", "--expected-revision", "5"},
		{"function", "update", "hello", "--remove-secret", "token"},
		{"function", "update", "hello", "--clear", "secrets"},
		{"function", "update", "hello", "--clear", "secrets", "--secret", "A=b"},
	}...)
}

func TestSecretFromStdin(t *testing.T) {
	b := newSecretBench(t)
	b.stdin("of a pipe")
	if o := b.run("secret", "create", "db", "--value-file", "-"); o.code != 0 {
		t.Fatal(o)
	}
	if got := b.api.taken(); len(got) != 1 || got[0] != `SecretService/CreateSecret {"name":"db","value":"b2YgYSBwaXBl"}` {
		t.Fatal(got)
	}
}

func TestSecretCompletion(t *testing.T) {
	for _, args := range [][]string{
		{"secret", "get", ""},
		{"secret", "update", ""},
		{"secret", "delete", ""},
		{"secret", "get-value", ""},
		{"deploy", "x", "--secret-file", ""},
		{"function", "update", "hello", "--remove-secret", ""},
	} {
		b := newSecretBench(t)
		if o := b.run(append([]string{"__complete"}, args...)...); o.stdout != "db\n:4\n" {
			t.Errorf("%v completes to %q", args, o.stdout)
		}
	}
}

func TestDeployWithSecrets(t *testing.T) {
	b := newBench(t)
	store := &functionStore{}
	store.register(b.api)
	file := b.file("hello.py", "def handler(e, c): pass\n")
	o := b.run("deploy", file, "--runtime", "python3.11", "--handler", "hello.handler", "--secret", "DB=db", "--secret-file", "cert")
	c := store.function.GetConfiguration()
	if o.code != 0 || c.GetSecretEnvironment()["DB"] != "db" || len(c.GetSecretFiles()) != 1 {
		t.Fatalf("%+v, created %v", o, c)
	}
	b.api.taken()
	b.app = b.newApp()
	if o := b.run("deploy", file, "--secret", "API=token"); o.code != 0 {
		t.Fatal(o)
	}
	want := `FunctionService/UpdateFunctionConfiguration {"name":"hello","configuration":{"secretEnvironment":{"API":"token","DB":"db"},"secretFiles":["cert"]},` +
		`"replace":["secret_environment","secret_files"],"expectedRevision":"1"}`
	if got := b.api.taken(); len(got) < 2 || got[1] != want {
		t.Fatalf("asked for %q, want %q", got, want)
	}
}
