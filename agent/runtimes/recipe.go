package runtimes

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"runtime"
)

//go:embed python/bootstrap.py node/bootstrap.js ruby/bootstrap.rb java
var bootstraps embed.FS

// Releases of Debian that images are made of.
const (
	bookworm = "bookworm"
	trixie   = "trixie"
)

// recipeFormat is part of every recipe's hash: raise it when finish or canonical archives change.
const recipeFormat = 2

// recipe says how an image is made. Its exported fields are what its hash covers.
type recipe struct {
	Name string
	// Suite is the release of Debian; the hash has it apart from the rest.
	Suite string `json:"-"`
	// Packages are installed with their dependencies, without recommended ones.
	Packages []string
	// Mode and Command say how PID 1 starts the runtime.
	Mode    string
	Command []string
	// Bootstrap is the pattern of the embedded files that are copied to /var/runtime.
	Bootstrap string
	// Compile runs in the image once the bootstrap is there.
	Compile []string `json:",omitempty"`
	// Python is the interpreter that compiles PythonDirs ahead, since the file system is read-only at run time.
	Python     string `json:"-"`
	PythonDirs []string
	// GzipDirs hold JSON that its readers also find compressed.
	GzipDirs []string
	// JavaTrust has the CAs in the form that Java reads, too.
	JavaTrust bool `json:",omitempty"`
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
	return []recipe{
		pythonRecipe("3.11", bookworm), pythonRecipe("3.13", trixie), nodeRecipe("18", bookworm), nodeRecipe("20", trixie),
		rubyRecipe(), javaRecipe(), providedRecipe(),
	}
}

func pythonRecipe(version, suite string) recipe {
	python, lib := "/usr/bin/python"+version, "/usr/lib/python"+version
	return recipe{
		Name:     "python" + version,
		Suite:    suite,
		Packages: basePackages("python3", "python3-boto3"),
		Mode:     ModeExec,
		// Isolated and without site: nothing but the bootstrap decides on paths, and the start is quicker.
		Command:        []string{python, "-I", "-S", "-B", "/var/runtime/bootstrap.pyc"},
		Bootstrap:      "python/bootstrap.py",
		Compile:        []string{python, "-I", "-S", "-B", "-c", compileBootstrap},
		Python:         python,
		PythonDirs:     []string{lib, "/usr/lib/python3"},
		GzipDirs:       []string{"usr/lib/python3/dist-packages/botocore/data"},
		VersionCommand: []string{python, "-I", "-S", "-B", "-c", "import platform; print(platform.python_version())"},
		DownloadBytes:  45 << 20,
	}
}

// compileBootstrap makes bootstrap.pyc: Python starts it without compiling or looking for anything.
const compileBootstrap = `import py_compile
py_compile.compile("/var/runtime/bootstrap.py", "/var/runtime/bootstrap.pyc", doraise=True,
    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)`

func nodeRecipe(major, suite string) recipe {
	return recipe{
		Name:           "nodejs" + major,
		Suite:          suite,
		Packages:       basePackages("nodejs"),
		Mode:           ModeExec,
		Command:        []string{"/usr/bin/node", "/var/runtime/bootstrap.js"},
		Bootstrap:      "node/bootstrap.js",
		VersionCommand: []string{"/usr/bin/node", "-p", "process.versions.node"},
		DownloadBytes:  52 << 20,
	}
}

func rubyRecipe() recipe {
	return recipe{
		Name:     "ruby3.1",
		Suite:    bookworm,
		Packages: basePackages("ruby", "ruby3.1"),
		Mode:     ModeExec,
		// Gems are loaded after the start, while the sandbox waits for its function.
		Command:        []string{"/usr/bin/ruby3.1", "--disable=gems,did_you_mean,error_highlight", "/var/runtime/bootstrap.rb"},
		Bootstrap:      "ruby/bootstrap.rb",
		VersionCommand: []string{"/usr/bin/ruby3.1", "--disable=gems", "-e", "print RUBY_VERSION"},
		DownloadBytes:  46 << 20,
	}
}

func javaRecipe() recipe {
	return recipe{
		Name:      "java17",
		Suite:     bookworm,
		Packages:  basePackages("openjdk-17-jre-headless"),
		Mode:      ModeExec,
		Command:   []string{"/bin/sh", "/var/runtime/start.sh"},
		Bootstrap: "java/*",
		Compile: []string{"/bin/sh", "-c", javaInChroot + `"$java" -XX:-UsePerfData -m jdk.compiler/com.sun.tools.javac.Main ` +
			`-proc:none -g:source,lines -Xlint:all -Werror -d /var/runtime/classes /var/runtime/*.java && rm /var/runtime/*.java`},
		JavaTrust:      true,
		VersionCommand: []string{"/bin/sh", "-c", javaInChroot + `"$java" -XX:-UsePerfData -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java\.version = //p'`},
		DownloadBytes:  90 << 20,
	}
}

// javaInChroot finds Java, and its libraries: by itself it needs /proc for that.
const javaInChroot = `set -- /usr/lib/jvm/java-17-openjdk-*; export LD_LIBRARY_PATH="$1/lib"; java="$1/bin/java"; `

func providedRecipe() recipe {
	return recipe{
		Name:          "provided",
		Suite:         bookworm,
		Packages:      basePackages(),
		Mode:          ModeRuntimeAPI,
		Command:       []string{"/var/task/bootstrap"},
		DownloadBytes: 36 << 20,
	}
}

// baseHash identifies the Debian part of the image.
func (r recipe) baseHash() string {
	r.Bootstrap, r.Compile, r.Command, r.Mode, r.VersionCommand = "", nil, nil, "", nil
	return hashJSON(map[string]any{"format": recipeFormat, "suite": r.Suite, "arch": runtime.GOARCH, "recipe": r})
}

// hash identifies all of the image but the versions of its packages.
func (r recipe) hash() (string, error) {
	files, err := r.bootstrap()
	if err != nil {
		return "", err
	}
	return hashJSON(map[string]any{"base": r.baseHash(), "recipe": r, "bootstrap": files}), nil
}

// bootstrap returns the files of the language bootstrap by name.
func (r recipe) bootstrap() (map[string][]byte, error) {
	if r.Bootstrap == "" {
		return nil, nil
	}
	names, err := fs.Glob(bootstraps, r.Bootstrap)
	if err == nil && len(names) == 0 {
		err = fs.ErrNotExist
	}
	files := map[string][]byte{}
	for _, name := range names {
		if err == nil {
			files[path.Base(name)], err = fs.ReadFile(bootstraps, name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read embedded bootstrap %s: %w", r.Bootstrap, err)
	}
	return files, nil
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
