package agent

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
)

// Secrets reach the function's environment and its runtime's files, and nothing that the agent writes.
func TestSecretsOfASandbox(t *testing.T) {
	loaded := make(chan *runtimetest.FakeProcess, 1)
	fake := &runtimetest.Fake{}
	fake.Handler = func(p *runtimetest.FakeProcess, _ frame.Invoke, _ []byte) runtimetest.FakeAnswer {
		loaded <- p
		return runtimetest.FakeAnswer{Result: []byte("1")}
	}
	n := newNode(t, fake, nil)
	const variable, file = "s3cr3t-of-the-environment", "s3cr3t-of-a-file"
	id := n.create(func(s *agentv1.SandboxSpec) {
		s.SecretsRevision = 7
		s.SecretEnvironment = map[string]string{"DB": variable, "COLOUR": "blue", "AWS_REGION": "venus"}
		s.SecretFiles = map[string][]byte{"cert": []byte(file)}
	})
	if _, err := n.call(id, "{}"); err != nil {
		t.Fatal(err)
	}
	p := <-loaded
	if env := p.Load.Env; env["DB"] != variable || env["COLOUR"] != "blue" || env["AWS_REGION"] != "us-east-1" {
		t.Errorf("the function's environment is %v", env)
	}
	if string(p.Config.SecretFiles["cert"]) != file || len(p.Config.SecretFiles) != 1 {
		t.Errorf("the files are %v", p.Config.SecretFiles)
	}
	if env := strings.Join(p.Config.Env, " "); strings.Contains(env, "s3cr3t") {
		t.Errorf("the container's own environment is %s", env)
	}
	if s := n.named(id).status(); s.GetSecretsRevision() != 7 {
		t.Errorf("reported as %v", s)
	}
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte("s3cr3t")) {
			t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
