package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/agent/runtimes"
	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// builder is an ImageBuilder that writes images in a moment, and prunes as the real one.
type builder struct {
	*runtimes.Images
	dir   string
	fails error
	t     testing.TB
}

func (b *builder) Build(_ context.Context, name string, _ runtimes.BuildOptions) (*runtimes.Image, error) {
	if b.fails != nil {
		return nil, b.fails
	}
	putImage(b.t, b.dir, name, "built")
	return &runtimes.Image{}, nil
}

// putImage makes the current image of a runtime.
func putImage(t testing.TB, dir, name, digest string) {
	t.Helper()
	d := filepath.Join(dir, name)
	manifest := `{"runtime":"` + name + `","digest":"sha256:` + digest + `","command":["/bin/x"],"mode":"exec"}`
	err := errors.Join(os.MkdirAll(filepath.Join(d, digest, "rootfs"), 0o755),
		os.WriteFile(filepath.Join(d, digest, "manifest.json"), []byte(manifest), 0o600),
		os.Symlink(digest, filepath.Join(d, "new")), os.Rename(filepath.Join(d, "new"), filepath.Join(d, "current")))
	if err != nil {
		t.Fatal(err)
	}
}

func newBuilderNode(t *testing.T) (*node, *builder) {
	t.Helper()
	b := &builder{t: t, dir: t.TempDir()}
	images, err := runtimes.New(runtimes.Config{Dir: b.dir})
	if err != nil {
		t.Fatal(err)
	}
	b.Images = images
	return newNode(t, &runtimetest.Fake{}, func(c *Config) { c.RuntimesDir, c.Builder = b.dir, b }), b
}

func TestPrepareBuildsTheRuntime(t *testing.T) {
	n, b := newBuilderNode(t)
	prepare := func() error {
		_, err := n.Prepare(t.Context(), &agentv1.PrepareRequest{Runtime: "provided", CodeDigest: n.digest})
		return err
	}
	b.fails = errors.New("no route to the mirror")
	if err := prepare(); fault.From(err).Code != codes.Unavailable || fault.From(err).Message != "node n1 can't build it: no route to the mirror" {
		t.Errorf("got %v", err)
	}
	b.fails = fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "mmdebstrap is missing")
	if err := prepare(); fault.From(err).Code != codes.FailedPrecondition || fault.From(err).Message != "mmdebstrap is missing" {
		t.Errorf("got %v", err)
	}
	b.fails = nil
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	limit := time.After(20 * time.Second)
	for { // it was reported before Prepare answered
		select {
		case r := <-n.plane.current.reports:
			if len(r.GetRuntimes()) == 1 && r.GetRuntimes()[0].GetDigest() == "sha256:built" {
				return
			}
		case <-limit:
			t.Fatal("no report of the image")
		}
	}
}

// New sandboxes use the new image, running ones keep theirs, and it is removed after the last of them.
func TestNewImageRollsOut(t *testing.T) {
	n, b := newBuilderNode(t)
	provided := func(s *agentv1.SandboxSpec) { s.Runtime = "provided" }
	putImage(t, b.dir, "provided", "aa")
	old := []string{n.create(provided), n.create(provided)}
	putImage(t, b.dir, "provided", "bb")
	young := n.create(provided)
	for id, want := range map[string]string{old[0]: "sha256:aa", old[1]: "sha256:aa", young: "sha256:bb"} {
		if got := n.named(id).image.Digest; got != want {
			t.Errorf("sandbox on %s, want %s", got, want)
		}
	}
	destroy := func(id string) {
		t.Helper()
		if _, err := n.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: id, Grant: &agentv1.Grant{Term: 1, Sequence: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	aa := filepath.Join(b.dir, "provided", "aa")
	destroy(old[0])
	if removed, err := b.Prune(); removed != 0 || err != nil {
		t.Errorf("removed %d images that are in use, %v", removed, err)
	}
	destroy(old[1])
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(aa); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the old image is still there")
		}
	}
	if _, err := n.call(young, `{}`); err != nil {
		t.Errorf("the new sandbox: %v", err)
	}
}

func TestImageThatIsReplacedWhileItIsTaken(t *testing.T) {
	dir := t.TempDir()
	s := &images{dir: dir}
	putImage(t, dir, "provided", "aa")
	i, err := s.acquire("provided")
	if err != nil || !s.current(i) {
		t.Fatalf("%v, current %t", err, s.current(i))
	}
	putImage(t, dir, "provided", "bb")
	if s.current(i) {
		t.Error("aa is still current")
	}
	i.release()
	if err := os.RemoveAll(filepath.Join(dir, "provided", "aa")); err != nil {
		t.Fatal(err)
	}
	if i, err = s.acquire("provided"); err != nil || i.Digest != "sha256:bb" {
		t.Errorf("%v, %v", i, err)
	}
	i.release()
}
