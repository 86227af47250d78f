package runtimetest

import (
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	Run(t, func(*testing.T) sandbox.Runtime { return &Fake{} }, func(t *testing.T, args ...string) sandbox.Config {
		dir := t.TempDir()
		return sandbox.Config{ID: uuid.NewString(), RootFS: dir, SocketDir: dir, Command: args, MemoryBytes: 1 << 20, MilliCPUs: 100, PIDs: 10}
	})
}
