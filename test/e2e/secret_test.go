package e2e

import (
	"bytes"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// keeper answers what it was given in confidence.
const keeper = `
import os, uuid
instance = str(uuid.uuid4())
def read(name):
    path = "/run/secrets/" + name
    if not os.path.exists(path):
        return None
    return {"text": open(path).read(), "mode": oct(os.stat(path).st_mode & 0o7777), "mine": os.stat(path).st_uid == os.getuid()}
def handler(event, context):
    return {"db": os.environ.get("DB"), "cert": read("cert"), "instance": instance}
`

type kept struct {
	DB   *string
	Cert *struct {
		Text, Mode string
		Mine       bool
	}
	Instance string
}

// vault is an instance with secrets, and all values that they ever had.
type vault struct {
	*instance
	t      *testing.T
	values []string
}

// value makes one that compresses badly, so that it could be found in any file that holds it.
func (v *vault) value(name string) string {
	s := name + "-" + crand.Text()
	v.values = append(v.values, s)
	return s
}

func (v *vault) set(verb, name string) string {
	v.t.Helper()
	value := v.value(name)
	if out, stderr, code := v.cli(value, "secret", verb, name, "--value-file", "-"); code != 0 {
		v.t.Fatalf("secret %s %s: exit %d, %s%s", verb, name, code, out, stderr)
	}
	return value
}

func (v *vault) ask(function string) kept {
	v.t.Helper()
	resp := v.invoke(v.t, function, "{}")
	var k kept
	if err := json.Unmarshal(resp.GetPayload(), &k); err != nil || k.DB == nil {
		v.t.Fatalf("%s answered %s (%v)", function, resp.GetPayload(), err)
	}
	return k
}

// refused runs a command that must fail so.
func (v *vault) refused(code int, words string, args ...string) {
	v.t.Helper()
	out, stderr, got := v.cli("", args...)
	if got != code || !strings.Contains(stderr, words) {
		v.t.Errorf("mayfly %s: exit %d, want %d with %q\n%s%s", strings.Join(args, " "), got, code, words, out, stderr)
	}
}

// hidden fails if the text tells a value.
func (v *vault) hidden(what, text string) {
	v.t.Helper()
	for _, value := range v.values {
		if strings.Contains(text, value) {
			v.t.Errorf("%s tells the value %s:\n%.2000s", what, value, text)
		}
	}
}

// nothingOnDisk reads every file of the instance that is on its disk: those of file systems in memory go with them.
func (v *vault) nothingOnDisk(when string) {
	v.t.Helper()
	device, files := deviceOf(v.t, v.dir), 0
	err := filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // of a sandbox that has ended
		}
		if err != nil {
			return err
		}
		if d.IsDir() && deviceOf(v.t, path) != device {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		files++
		for _, value := range v.values {
			if bytes.Contains(content, []byte(value)) {
				v.t.Errorf("%s: %s holds the value %s", when, path, value)
			}
		}
		return err
	})
	if err != nil || files < 20 {
		v.t.Errorf("%s: read %d files, %v", when, files, err)
	}
}

func deviceOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return st.Dev
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSecrets(t *testing.T) {
	v := &vault{instance: own(t), t: t}
	path := writeFile(t, "keeper.py", keeper)
	deploy := []string{"deploy", path, "--runtime", "python3.11", "--handler", "keeper.handler", "--secret", "DB=db", "--secret-file", "cert"}

	v.refused(3, `secret "db"`, deploy...)
	db := v.set("create", "db")
	v.refused(3, `secret "cert"`, deploy...)
	cert := v.set("create", "cert")
	v.refused(5, "exists already", "secret", "create", "db", "--value", "other")
	v.mustCLI(t, deploy...)

	first := v.ask("keeper")
	if *first.DB != db || first.Cert == nil || first.Cert.Text != cert || first.Cert.Mode != "0o400" || !first.Cert.Mine {
		t.Fatalf("the function has %+v, %+v", first, first.Cert)
	}
	if again := v.ask("keeper"); again.Instance != first.Instance {
		t.Error("an unchanged function did not stay warm")
	}
	for _, show := range [][]string{
		{"function", "get", "keeper"},
		{"function", "get", "keeper", "--output", "json"},
		{"secret", "list", "--output", "json"},
		{"secret", "get", "db", "--output", "json"},
		{"logs", "keeper", "--since", "10m"},
	} {
		v.hidden(strings.Join(show, " "), v.mustCLI(t, show...))
	}
	if got := v.mustCLI(t, "secret", "get", "db"); !strings.Contains(strings.Join(strings.Fields(got), " "), "used by keeper") {
		t.Errorf("secret get says\n%s", got)
	}
	if got := v.mustCLI(t, "secret", "get-value", "db"); got != db {
		t.Errorf("secret get-value says %q", got)
	}

	v.changesReachFunctions(first)
	v.referencesHold(path)
	v.survivesKill()
	if err := v.up.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	v.nothingOnDisk("after the end")
	if err := v.launch(); err != nil {
		t.Fatal(err)
	}
}

// changesReachFunctions: a new value is what the next call runs with, in a version as well: it keeps the reference.
func (v *vault) changesReachFunctions(first kept) {
	t := v.t
	t.Helper()
	v.mustCLI(t, "version", "publish", "keeper")
	v.ask("keeper:1")
	db := v.set("update", "db")
	for _, function := range []string{"keeper", "keeper:1"} {
		if got := v.ask(function); *got.DB != db || got.Instance == first.Instance {
			t.Errorf("after the update %s has %s, want %s", function, *got.DB, db)
		}
	}
	cert := v.set("update", "cert")
	if got := v.ask("keeper"); got.Cert.Text != cert {
		t.Errorf("after the update the file is %s, want %s", got.Cert.Text, cert)
	}
	for range 5 {
		db = v.set("update", "db")
		if got := v.ask("keeper"); *got.DB != db {
			t.Errorf("after another update keeper has %s, want %s", *got.DB, db)
		}
	}
	got := v.mustCLI(t, "secret", "get", "db", "--output", "json")
	if !strings.Contains(got, `"version": "7"`) {
		t.Errorf("the versions were not counted: %s", got)
	}
}

// referencesHold: what is in use stays, unless by force; what is missing is told by name.
func (v *vault) referencesHold(path string) {
	t := v.t
	t.Helper()
	v.refused(5, "keeper refers to it", "secret", "delete", "db")
	v.mustCLI(t, "secret", "delete", "db", "--force")
	_, err := v.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "keeper", Payload: []byte("{}")})
	if reasonOf(err) != "SECRET_NOT_FOUND" || !strings.Contains(err.Error(), `secret "db"`) {
		t.Errorf("without its secret keeper says %v", err)
	}
	v.refused(5, `secret "db"`, "invoke", "keeper")
	v.refused(3, `secret "db"`, "function", "update", "keeper", "--memory", "256")
	v.refused(3, `secret "db"`, "deploy", writeFile(t, "keeper.py", keeper+"\nx = 1\n"))

	db := v.set("create", "db")
	if got := v.ask("keeper"); *got.DB != db {
		t.Errorf("after it was created again keeper has %s, want %s", *got.DB, db)
	}
	v.mustCLI(t, "function", "update", "keeper", "--remove-secret", "cert")
	if got := v.ask("keeper"); got.Cert != nil || *got.DB != db {
		t.Errorf("after the removal keeper has %+v", got)
	}
	v.refused(5, "keeper refers to it", "secret", "delete", "cert") // by its version

	if _, stderr, code := v.cli("\x00\xff", "secret", "create", "binary", "--value-file", "-"); code != 0 {
		t.Fatal(stderr)
	}
	v.refused(2, "make it a file", "function", "update", "keeper", "--secret", "BLOB=binary")
	v.mustCLI(t, "deploy", path, "--secret-file", "binary", "--secret-file", "cert")
	if got := v.ask("keeper"); got.Cert == nil || *got.DB != db {
		t.Errorf("after deploy keeper has %+v", got)
	}
}

func (v *vault) survivesKill() {
	t := v.t
	t.Helper()
	before := v.ask("keeper")
	if err := v.kill(); err != nil {
		t.Fatal(err)
	}
	v.nothingOnDisk("after kill -9")
	if err := v.launch(); err != nil {
		t.Fatal(err)
	}
	if got := v.ask("keeper"); *got.DB != *before.DB || got.Cert.Text != before.Cert.Text {
		t.Errorf("after the restart keeper has %+v", got)
	}
	v.nothingOnDisk("while it runs")
}

// TestRootKeyRotationSurvivesKills kills everything at random moments of rotations: all that was sealed can be read after
// each start, and no key is left over.
func TestRootKeyRotationSurvivesKills(t *testing.T) {
	v := &vault{instance: own(t), t: t}
	client := mayflyv1.NewSecretServiceClient(v.conn)
	want := map[string]string{}
	for i := range 100 {
		name := fmt.Sprint("s", i)
		want[name] = v.value(name)
		if _, err := client.CreateSecret(t.Context(), &mayflyv1.CreateSecretRequest{Name: name, Value: []byte(want[name])}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(when string) {
		t.Helper()
		for name, value := range want {
			r, err := client.GetSecretValue(t.Context(), &mayflyv1.GetSecretValueRequest{Name: name})
			if err != nil || string(r.GetValue()) != value {
				t.Fatalf("%s: %s is %q, %v", when, name, r.GetValue(), err)
			}
		}
	}
	began := time.Now()
	out := v.mustCLI(t, "cluster", "rotate-root-key")
	if !strings.Contains(out, "Sealed 1 access keys and 100 secrets") {
		t.Errorf("the rotation says %s", out)
	}
	took := time.Since(began)
	read("after a rotation")
	for round := range 4 {
		before := v.rootKeys()
		var ended sync.WaitGroup
		ended.Go(func() { v.cli("", "cluster", "rotate-root-key") }) // it dies with the server, or is through
		time.Sleep(rand.N(took))
		if err := v.kill(); err != nil {
			t.Fatal(err)
		}
		ended.Wait()
		killed := v.rootKeys()
		if err := v.launch(); err != nil {
			t.Fatal(err)
		}
		after := v.rootKeys()
		t.Logf("round %d: killed with %d keys on disk", round, len(killed))
		if len(before) != 1 || len(after) != 1 || after[0] != killed[0] {
			t.Errorf("%d keys before, %d after the restart", len(before), len(after))
		}
		read("after a kill")
	}
	v.nothingOnDisk("after rotations")
	db := v.set("update", "s0")
	if got := v.mustCLI(t, "secret", "get-value", "s0"); got != db {
		t.Errorf("s0 is %q, want %q", got, db)
	}
}

func (v *vault) rootKeys() []string {
	v.t.Helper()
	content, err := os.ReadFile(filepath.Join(v.dir, "state", "server", "root.key"))
	if err != nil {
		v.t.Fatal(err)
	}
	return strings.Fields(string(content))
}
