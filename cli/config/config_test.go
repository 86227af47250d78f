package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mayfly-faas/mayfly/cli/config"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func TestPath(t *testing.T) {
	for want, m := range map[string]map[string]string{
		"/x/mayfly/config.yaml":         {"XDG_CONFIG_HOME": "/x", "HOME": "/h"},
		"/h/.config/mayfly/config.yaml": {"HOME": "/h"},
	} {
		if got, err := config.Path(env(m)); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if _, err := config.Path(env(nil)); err == nil {
		t.Error("without HOME there is a path")
	}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mayfly", "config.yaml")
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.StringMatching(`[ -~\n]{0,20}`)
		f := &config.File{Current: text.Draw(r, "current"), Contexts: map[string]config.Context{}}
		for range rapid.IntRange(0, 3).Draw(r, "n") {
			f.Contexts[text.Draw(r, "name")] = config.Context{
				Endpoint: text.Draw(r, "endpoint"), CA: text.Draw(r, "ca"),
				AccessKeyID: text.Draw(r, "id"), SecretAccessKey: text.Draw(r, "secret"), Namespace: text.Draw(r, "ns"),
			}
		}
		if err := f.Save(path); err != nil {
			r.Fatal(err)
		}
		got, err := config.Load(path)
		if err != nil || !reflect.DeepEqual(got, f) {
			r.Fatalf("saved %+v, loaded %+v, %v", f, got, err)
		}
	})
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("files are left: %v, %v", entries, err)
	}
}

func TestLoadOfDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("contexts: [1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestResolve(t *testing.T) {
	f := &config.File{Current: "a", Contexts: map[string]config.Context{
		"a": {Endpoint: "a:1", Namespace: "na", AccessKeyID: "ka", SecretAccessKey: "sa"},
		"b": {Endpoint: "b:1"},
	}}
	for name, c := range map[string]struct {
		flags config.Overrides
		env   map[string]string
		want  config.Context
	}{
		"the current one":           {want: f.Contexts["a"]},
		"one by environment":        {env: map[string]string{"MAYFLY_CONTEXT": "b"}, want: f.Contexts["b"]},
		"a flag wins":               {flags: config.Overrides{Context: "a"}, env: map[string]string{"MAYFLY_CONTEXT": "b"}, want: f.Contexts["a"]},
		"endpoint by environment":   {env: map[string]string{"MAYFLY_CONTEXT": "b", "MAYFLY_ENDPOINT": "e:1"}, want: config.Context{Endpoint: "e:1"}},
		"endpoint by flag":          {flags: config.Overrides{Context: "b", Endpoint: "f:1"}, env: map[string]string{"MAYFLY_ENDPOINT": "e:1"}, want: config.Context{Endpoint: "f:1"}},
		"namespace by flag":         {flags: config.Overrides{Context: "b", Namespace: "nf"}, env: map[string]string{"MAYFLY_NAMESPACE": "ne"}, want: config.Context{Endpoint: "b:1", Namespace: "nf"}},
		"key and CA by environment": {env: map[string]string{"MAYFLY_CONTEXT": "b", "MAYFLY_ACCESS_KEY": "k:s:t", "MAYFLY_CA": "-----BEGIN X"}, want: config.Context{Endpoint: "b:1", CA: "-----BEGIN X", AccessKeyID: "k", SecretAccessKey: "s:t"}},
	} {
		if got, err := config.Resolve(f, c.flags, env(c.env)); err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	f := &config.File{Contexts: map[string]config.Context{"b": {Endpoint: "b:1"}}}
	if _, err := config.Resolve(f, config.Overrides{}, env(nil)); !errors.Is(err, config.ErrNoContext) {
		t.Errorf("no context: %v", err)
	}
	if _, err := config.Resolve(f, config.Overrides{Context: "c"}, env(nil)); !errors.Is(err, config.ErrUnknownContext) || !strings.Contains(err.Error(), "there are: b") {
		t.Errorf("unknown context: %v", err)
	}
	for variable, value := range map[string]string{"MAYFLY_ACCESS_KEY": "nocolon", "MAYFLY_CA": "/does/not/exist"} {
		if _, err := config.Resolve(f, config.Overrides{Context: "b"}, env(map[string]string{variable: value})); err == nil || !strings.Contains(err.Error(), variable) {
			t.Errorf("%s: %v", variable, err)
		}
	}
}
