// Package runtimes builds and keeps the managed runtime images of a node: the root file systems that functions
// run in, made of Debian packages and of Mayfly's language bootstraps, with the same digest wherever the same
// packages are used.
//
// What belongs here: recipes, building, listing and pruning of images, and the bootstraps (python/, node/). What
// does not: running sandboxes (agent/containerd), the helper that is PID 1 of them, and images that users bring.
package runtimes

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"golang.org/x/sync/singleflight"
)

// MirrorEnv is the environment variable that names the Debian mirror when Config.Mirror doesn't.
const MirrorEnv = "MAYFLY_DEBIAN_MIRROR"

// How PID 1 of a sandbox starts a runtime: Manifest.Mode.
const (
	ModeExec       = "exec"
	ModeRuntimeAPI = "runtime-api"
)

// Config is what Images needs.
type Config struct {
	// Dir is where images are, such as /var/lib/mayfly/agent/runtimes; an absolute path.
	Dir string
	// CacheDir holds downloaded packages and unfinished images; DIR/.cache if empty.
	CacheDir string
	// Mirror is the URL of a Debian mirror. If empty: MAYFLY_DEBIAN_MIRROR, else the mirror that a host with
	// Debian bookworm is set up with, else deb.debian.org.
	Mirror string
	// Logger is slog's discarding logger if nil.
	Logger *slog.Logger
	// Progress is told how builds proceed, from several goroutines. May be nil.
	Progress func(Event)
	// Now is time.Now if nil.
	Now func() time.Time
}

// Event is a step of a build.
type Event struct {
	Runtime string
	// Stage is one of "prepare", "download", "extract", "finish", "install", "digest", "done".
	Stage string
	// Fraction of the whole build that is done: 0 to 1, never falling within a build.
	Fraction float64
	// Text is for people: what happens now.
	Text string
}

// Manifest describes an image; it is the file manifest.json beside its root file system.
type Manifest struct {
	Runtime string `json:"runtime"`
	// Version of the interpreter, such as 3.11.2; empty for provided.
	Version string `json:"version"`
	// Digest is "sha256:" and the SHA-256, in hex, of the root file system as a canonical tar.
	Digest    string    `json:"digest"`
	SizeBytes int64     `json:"size_bytes"`
	BuiltAt   time.Time `json:"built_at"`
	// Recipe changes when the image would be built differently today.
	Recipe  string   `json:"recipe"`
	Command []string `json:"command"`
	Mode    string   `json:"mode"`
}

// Image is an image on this node.
type Image struct {
	Manifest
	// RootFS is its root file system, to be mounted read-only.
	RootFS string
	// Stale tells that this version of Mayfly would build it differently.
	Stale bool
}

// Images are the runtime images of a node. Its methods may be called concurrently, also by several processes.
type Images struct {
	cfg Config
	dir string
	// flight joins the downloads of builds that run at once.
	flight singleflight.Group
}

// New returns the images below cfg.Dir.
func New(cfg Config) (*Images, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("runtimes: directory %q is not an absolute path", cfg.Dir)
	}
	dir := cfg.Dir
	if cfg.CacheDir == "" {
		cfg.CacheDir = filepath.Join(dir, ".cache")
	}
	if cfg.Mirror == "" {
		cfg.Mirror = os.Getenv(MirrorEnv)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Progress == nil {
		cfg.Progress = func(Event) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Images{cfg: cfg, dir: dir}, nil
}

// Names returns the managed runtimes, sorted.
func Names() []string {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return names
}

// recipeOf finds a recipe; its error has reason INVALID_RUNTIME.
func recipeOf(name string) (recipe, error) {
	for _, r := range recipes() {
		if r.Name == name {
			return r, nil
		}
	}
	return recipe{}, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME,
		"runtime %q does not exist; use one of %s", name, strings.Join(Names(), ", "))
}
