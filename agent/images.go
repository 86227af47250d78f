package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/agent/runtimes"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// images finds the managed runtime images of the node: <dir>/<name>/current leads to a directory with rootfs and manifest.json.
type images struct{ dir string }

// image is one runtime image.
type image struct {
	Runtime   string    `json:"runtime"`
	Version   string    `json:"version"`
	Digest    string    `json:"digest"`
	SizeBytes int64     `json:"size_bytes"`
	BuiltAt   time.Time `json:"built_at"`
	Command   []string  `json:"command"`
	Mode      string    `json:"mode"`

	rootFS  string
	release func() // of an acquired image
}

var errNoImage = errors.New("no image")

const (
	helperPath     = "/run/mayfly-helper/init"
	modeExec       = "exec"
	modeRuntimeAPI = "runtime-api"
)

// command is what PID 1 of a sandbox is.
func (i *image) command() []string {
	return append([]string{helperPath, i.Mode, "--"}, i.Command...)
}

// find reads a runtime's image.
func (s *images) find(name string) (*image, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME, "%q is no runtime", name)
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.dir, name, "current"))
	if errors.Is(err, fs.ErrNotExist) {
		e := fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME,
			"this node has no image of runtime %q; build it with: mayfly runtime build %s", name, name)
		e.Cause = errNoImage
		return nil, e
	}
	if err != nil {
		return nil, fault.Internal(err, "runtime %q can't be used", name)
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, fault.Internal(err, "runtime %q can't be used", name)
	}
	i := &image{}
	if err := json.Unmarshal(b, i); err != nil {
		return nil, fault.Internal(err, "the manifest of runtime %q can't be read", name)
	}
	setDefault(&i.Mode, modeExec)
	if len(i.Command) == 0 || (i.Mode != modeExec && i.Mode != modeRuntimeAPI) {
		return nil, fault.Internal(fmt.Errorf("command %q, mode %q", i.Command, i.Mode), "the manifest of runtime %q is wrong", name)
	}
	i.rootFS = filepath.Join(dir, "rootfs")
	return i, nil
}

// acquire is find for a sandbox: the image stays until its release is called, whatever is built meanwhile.
func (s *images) acquire(name string) (*image, error) {
	for {
		i, err := s.find(name)
		if err != nil {
			return nil, err
		}
		i.release, err = runtimes.Hold(filepath.Dir(i.rootFS))
		if err == nil {
			return i, nil
		}
		if !errors.Is(err, runtimes.ErrGone) {
			return nil, fault.Internal(err, "runtime %q can't be used", name)
		}
		// A newer one has taken its place.
	}
}

// current tells whether new sandboxes would use the image, too.
func (s *images) current(i *image) bool {
	target, err := os.Readlink(filepath.Join(s.dir, i.Runtime, "current"))
	return err == nil && filepath.Base(target) == filepath.Base(filepath.Dir(i.rootFS))
}

// list is all usable images, as the API has them.
func (s *images) list() []*mayflyv1.RuntimeImage {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil
	}
	var all []*mayflyv1.RuntimeImage
	for _, e := range entries {
		i, err := s.find(e.Name())
		if err != nil {
			continue
		}
		all = append(all, &mayflyv1.RuntimeImage{
			Runtime: e.Name(), Digest: i.Digest, SizeBytes: i.SizeBytes,
			BuiltAt: timestamppb.New(i.BuiltAt), Version: i.Version,
		})
	}
	return all
}
