package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// The function can read its secrets, and neither it nor anybody else can do more.
func TestSecretFiles(t *testing.T) {
	files := map[string][]byte{"token": []byte("s3cr3t-token"), "cert": []byte("s3cr3t-cert")}
	got := run(t, func(c *sandbox.Config) { c.SecretFiles = files }, "secrets", "/run/secrets")
	want := "cert -r-------- s3cr3t-cert <nil>\ntrue true\ntoken -r-------- s3cr3t-token <nil>\ntrue true\ntrue"
	if got != want {
		t.Fatalf("the sandbox saw\n%s\nwant\n%s", got, want)
	}
	if got := run(t, nil, "secrets", "/run/secrets"); !strings.Contains(got, "no such file") {
		t.Fatalf("a sandbox without secrets saw %s", got)
	}
}

// Secrets are on no disk: their directory on the host is a file system in memory, and is gone with the sandbox.
func TestSecretFilesAreInMemory(t *testing.T) {
	c := probe(t, "sleep")
	c.SecretFiles = map[string][]byte{"token": []byte("s3cr3t")}
	launch(t, shared.runtime, c)
	dir := secretsDir(shared.runtime.dir(c.ID))
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.TMPFS_MAGIC || fs.Flags&unix.ST_NOEXEC == 0 {
		t.Errorf("the secrets are on %+v", fs)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "token"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o400 || st.Uid%idsPerSandbox != (shared.runtime.cfg.UIDBase+sandboxUID)%idsPerSandbox || st.Uid != st.Gid {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if err := shared.runtime.Destroy(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after Destroy: %v", err)
	}
}

func TestBadSecretFiles(t *testing.T) {
	for name, files := range map[string]map[string][]byte{
		"a path":   {"../token": []byte("x")},
		"a parent": {"..": []byte("x")},
		"no name":  {"": []byte("x")},
		"too much": {"token": make([]byte, secretsBytes)},
	} {
		c := probe(t, "exit", "0")
		c.SecretFiles = files
		if err := shared.runtime.Create(t.Context(), c); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if left := traces(t, shared.runtime.cfg, shared.runtime); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
