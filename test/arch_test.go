// Package test holds what no single room can test: who imports whom, and the rules every file keeps.
//
// What belongs here: tests of the repository as a whole. What does not: tests of one room (beside it).
package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mayfly-faas/mayfly/"

// allowed is the import rule of docs/architecture.md: a room may import the rooms after it, each standing for itself
// and what is below it when it ends in "/...". proto is allowed to everybody but scheduler.
// The longest matching key rules a package.
var allowed = map[string][]string{
	"proto":                     {},
	"scheduler":                 {},
	"controlplane":              {"controlplane/..."},
	"controlplane/state":        {"controlplane/state/..."},
	"controlplane/store":        {"controlplane/state/...", "controlplane/store/..."},
	"controlplane/peer":         {},
	"controlplane/blob":         {},
	"controlplane/auth":         {"controlplane/state/..."},
	"controlplane/fleet":        {"controlplane/state/...", "scheduler"},
	"controlplane/router":       {"controlplane/state/..."},
	"controlplane/api":          {"controlplane/auth", "controlplane/state/..."},
	"controlplane/gateway":      {"controlplane/auth"},
	"agent":                     {"agent/...", "controlplane/peer"},
	"agent/sandbox":             {"agent/sandbox/..."},
	"agent/frame":               {},
	"agent/runtimeapi":          {"agent/frame", "agent/sandbox"},
	"agent/containerd":          {"agent/sandbox/...", "agent/containerd/...", "agent/frame"},
	"agent/containerd/helper":   {"agent/runtimeapi", "agent/frame", "agent/containerd/seccomp"},
	"agent/sandbox/runtimetest": {"agent/sandbox", "agent/frame"},
	"agent/code":                {},
	"agent/logs":                {},
	"agent/runtimes":            {"agent/frame"},
	"cli":                       {"cli/...", "controlplane", "agent", "controlplane/peer", "scheduler/sim"},
	"docs":                      {},
	"test":                      {"..."},
}

type listed struct {
	ImportPath                string
	Imports                   []string
	TestImports, XTestImports []string
	Doc                       string
	GoFiles                   []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Doc,GoFiles", module+"...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("only %d packages listed", len(all))
	}
	return all
}

func ruleOf(room string) ([]string, bool) {
	for room != "." {
		if rule, ok := allowed[room]; ok {
			return rule, true
		}
		room = filepath.Dir(room)
	}
	return nil, false
}

func permits(rule []string, room, imported string) bool {
	if room != "scheduler" && (imported == "proto" || strings.HasPrefix(imported, "proto/")) {
		return true
	}
	return slices.ContainsFunc(rule, func(a string) bool {
		if base, ok := strings.CutSuffix(a, "..."); ok {
			return strings.HasPrefix(imported+"/", base)
		}
		return imported == a
	})
}

func TestRoomsImportDownwardOnly(t *testing.T) {
	for _, p := range packages(t) {
		room := strings.TrimPrefix(p.ImportPath, module)
		rule, ok := ruleOf(room)
		if !ok {
			t.Errorf("%s stands in no room that the import rule knows: add it to the rule and to docs/architecture.md", room)
			continue
		}
		for _, imp := range p.Imports {
			imported, ours := strings.CutPrefix(imp, module)
			if ours && !permits(rule, room, imported) {
				t.Errorf("%s imports %s, which the import rule forbids: let them meet as an interface in controlplane/server.go or agent/agent.go", room, imported)
			}
		}
	}
}

func TestEveryPackageSaysWhatBelongsInIt(t *testing.T) {
	for _, p := range packages(t) {
		if strings.Contains(p.ImportPath, "/proto/mayfly/") || len(p.GoFiles) == 0 {
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestTopLevelIsFixed(t *testing.T) {
	known := []string{"proto", "controlplane", "agent", "scheduler", "cli", "test", "docs", "go.mod", "go.sum", "buf.yaml", "Makefile", "README.md", "LICENSE"}
	cmd := exec.Command("git", "ls-tree", "--name-only", "HEAD")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		if !strings.HasPrefix(name, ".") && !slices.Contains(known, name) {
			t.Errorf("%s stands at the top level, which is fixed", name)
		}
	}
}

// TestPureRoomsReadNoClock: times and randomness are data for rooms that must decide the same everywhere.
func TestPureRoomsReadNoClock(t *testing.T) {
	for _, room := range []string{"scheduler", "controlplane/state", "agent/sandbox"} {
		for _, file := range goFiles(t, filepath.Join("..", room)) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"time.Now(", "time.Since(", "rand.", "uuid.New"} {
				if strings.Contains(string(src), word) {
					t.Errorf("%s uses %s): pass it in", file, strings.TrimSuffix(word, "("))
				}
			}
		}
	}
}

func goFiles(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && filepath.Base(filepath.Dir(path)) != "runtimetest" {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("no Go files in %s: %v", dir, err)
	}
	return files
}
