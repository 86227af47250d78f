package runtimes

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"runtime"
)

//go:embed python/bootstrap.py node/bootstrap.js
var bootstraps embed.FS

// suite is the release of Debian that images are made of.
const suite = "bookworm"

// recipeFormat is part of every recipe's hash: raise it when finish or canonical archives change.
const recipeFormat = 2

// recipe says how an image is made. Its exported fields are what its hash covers.
type recipe struct {
	Name string
	// Packages are installed with their dependencies, without recommended ones.
	Packages []string
	// Mode and Command say how PID 1 starts the runtime.
	Mode    string
	Command []string
	// Bootstrap is copied from the embedded file of this name to /var/runtime.
	Bootstrap string
	// PythonDirs are compiled ahead, since the file system is read-only at run time.
	PythonDirs []string
	// GzipDirs hold JSON that its readers also find compressed.
	GzipDirs []string
	// VersionCommand prints the version of the interpreter, if there is one.
	VersionCommand []string
	// DownloadBytes is about what is fetched, for progress.
	DownloadBytes int64 `json:"-"`
}

// basePackages are in every image: what shell scripts, TLS and time zones need.
func basePackages(more ...string) []string {
	return append([]string{
		"base-files", "bash", "ca-certificates", "coreutils", "curl", "dash", "findutils", "grep", "gzip",
		"libc-bin", "mawk", "netbase", "sed", "tar", "tzdata",
	}, more...)
}

func recipes() []recipe {
	return []recipe{pythonRecipe(), nodeRecipe(), providedRecipe()}
}

func pythonRecipe() recipe {
	return recipe{
		Name:     "python3.11",
		Packages: basePackages("python3", "python3-boto3"),
		Mode:     ModeExec,
		// Isolated and without site: nothing but the bootstrap decides on paths, and the start is quicker.
		Command:        []string{"/usr/bin/python3.11", "-I", "-S", "-B", "/var/runtime/bootstrap.pyc"},
		Bootstrap:      "python/bootstrap.py",
		PythonDirs:     []string{"/usr/lib/python3.11", "/usr/lib/python3"},
		GzipDirs:       []string{"usr/lib/python3/dist-packages/botocore/data"},
		VersionCommand: []string{"/usr/bin/python3.11", "-I", "-S", "-B", "-c", "import platform; print(platform.python_version())"},
		DownloadBytes:  45 << 20,
	}
}

func nodeRecipe() recipe {
	return recipe{
		Name:           "nodejs18",
		Packages:       basePackages("nodejs"),
		Mode:           ModeExec,
		Command:        []string{"/usr/bin/node", "/var/runtime/bootstrap.js"},
		Bootstrap:      "node/bootstrap.js",
		VersionCommand: []string{"/usr/bin/node", "-p", "process.versions.node"},
		DownloadBytes:  52 << 20,
	}
}

func providedRecipe() recipe {
	return recipe{
		Name:          "provided",
		Packages:      basePackages(),
		Mode:          ModeRuntimeAPI,
		Command:       []string{"/var/task/bootstrap"},
		DownloadBytes: 36 << 20,
	}
}

// baseHash identifies the Debian part of the image.
func (r recipe) baseHash() string {
	r.Bootstrap, r.Command, r.Mode, r.VersionCommand = "", nil, "", nil
	return hashJSON(map[string]any{"format": recipeFormat, "suite": suite, "arch": runtime.GOARCH, "recipe": r})
}

// hash identifies all of the image but the versions of its packages.
func (r recipe) hash() (string, error) {
	script, err := r.bootstrap()
	if err != nil {
		return "", err
	}
	return hashJSON(map[string]any{"base": r.baseHash(), "recipe": r, "bootstrap": script}), nil
}

// bootstrap returns the language bootstrap, nil if there is none.
func (r recipe) bootstrap() ([]byte, error) {
	if r.Bootstrap == "" {
		return nil, nil
	}
	b, err := fs.ReadFile(bootstraps, r.Bootstrap)
	if err != nil {
		return nil, fmt.Errorf("read embedded bootstrap: %w", err)
	}
	return b, nil
}

// hashJSON is a short hash of v; encoding/json sorts the keys of maps.
func hashJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("runtimes: recipe cannot be marshalled: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}
