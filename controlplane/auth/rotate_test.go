package auth_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/controlplane/state"
	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// cluster is a state machine, the root keys beside it, and what was sealed.
type cluster struct {
	t       *testing.T
	path    string
	state   *state.State
	keyring *auth.Keyring
	secrets map[string]string // of access keys, by id
	values  map[string]string // of secrets, by NAMESPACE/NAME

	mu    sync.Mutex // one entry after another
	index uint64
	// steps counts what a rotation does to the world; crash cuts it off at one of them.
	steps int
	crash func(step int, before bool) error
}

func newCluster(t *testing.T, n int) *cluster {
	t.Helper()
	tbl, err := table.Open(table.Config{Dir: "state", FS: vfs.NewMem(), MemTableBytes: 256 << 10, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, path: filepath.Join(t.TempDir(), "root.key"), secrets: map[string]string{}, values: map[string]string{}}
	if c.state, err = state.New(state.Config{Table: tbl}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.state.Close() })
	c.restart()
	c.must(&statev1.Command{Operation: &statev1.Command_InitCluster{InitCluster: &statev1.InitCluster{
		ClusterId: "c", DefaultNamespace: &mayflyv1.Namespace{AccountId: "000000000001"},
	}}})
	for i := range n {
		c.addKey()
		c.addSecret(fmt.Sprint("s", i))
	}
	return c
}

// restart is what a node knows after it starts: the file, and the state.
func (c *cluster) restart() {
	c.t.Helper()
	roots, err := auth.EnsureRootKeys(c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.keyring, err = auth.NewKeyring(roots...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) propose(_ context.Context, command *statev1.Command) (*statev1.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	command.Time = timestamppb.New(time.Unix(int64(c.index), 0))
	r, err := c.state.Apply([]state.Entry{{Index: c.index, Term: 1, Command: command}})
	if err != nil {
		return nil, err
	}
	if ref := r[0].GetRefusal(); ref != nil {
		return nil, &fault.Error{Code: codes.Code(ref.GetCode()), Reason: ref.GetReason(), Message: ref.GetMessage()}
	}
	return r[0], nil
}

func (c *cluster) must(command *statev1.Command) {
	c.t.Helper()
	if _, err := c.propose(c.t.Context(), command); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) addKey() {
	record, secret := c.keyring.MintKey(auth.KeySpec{Role: reader, Namespace: auth.AllNamespaces})
	c.secrets[record.GetAccessKey().GetId()] = secret
	c.must(&statev1.Command{Operation: &statev1.Command_CreateAccessKey{CreateAccessKey: &statev1.CreateAccessKey{Record: record}}})
}

func (c *cluster) addSecret(name string) {
	value := "value of " + name
	c.values["default/"+name] = value
	c.must(createSecret(c.keyring, name, value))
}

func createSecret(k *auth.Keyring, name, value string) *statev1.Command {
	sealed, root := k.SealValue("default", name, []byte(value))
	return &statev1.Command{Operation: &statev1.Command_CreateSecret{CreateSecret: &statev1.CreateSecret{Record: &statev1.SecretRecord{
		Secret: &mayflyv1.Secret{Namespace: "default", Name: name, SizeBytes: int64(len(value))}, SealedValue: sealed, RootKeyId: root,
	}}}}
}

// step is one effect, which a crash may prevent, or follow.
func (c *cluster) step(do func() error) error {
	c.steps++
	if c.crash != nil {
		if err := c.crash(c.steps, true); err != nil {
			return err
		}
	}
	err := do()
	if c.crash != nil && err == nil {
		err = c.crash(c.steps, false)
	}
	return err
}

func (c *cluster) config() auth.RotationConfig {
	return auth.RotationConfig{
		Path: c.path, Keyring: c.keyring,
		AccessKeys: func() iter.Seq[*statev1.AccessKeyRecord] { return c.state.View().AccessKeys("", "") },
		Secrets:    func() iter.Seq[*statev1.SecretRecord] { return c.state.View().Secrets("", "") },
		Propose: func(ctx context.Context, command *statev1.Command) (r *statev1.Result, err error) {
			err = c.step(func() error { r, err = c.propose(ctx, command); return err })
			return r, err
		},
		Settle: func(context.Context) error { return c.step(c.state.Flush) },
	}
}

// readable checks that all that was ever sealed opens with what this node has.
func (c *cluster) readable(when string) {
	c.t.Helper()
	for id, secret := range c.secrets {
		record, _ := c.state.View().AccessKey(id)
		if got, err := c.keyring.OpenSecret(record); err != nil || got != secret {
			c.t.Fatalf("%s: access key %s: %q, %v", when, id, got, err)
		}
	}
	n := 0
	for record := range c.state.View().Secrets("", "") {
		n++
		s := record.GetSecret()
		got, err := c.keyring.OpenValue(record)
		if err != nil || string(got) != c.values[s.GetNamespace()+"/"+s.GetName()] {
			c.t.Fatalf("%s: secret %s: %q, %v", when, s.GetName(), got, err)
		}
	}
	if n != len(c.values) {
		c.t.Fatalf("%s: %d secrets, want %d", when, n, len(c.values))
	}
}

// rotated checks that one key is left, and that it sealed everything.
func (c *cluster) rotated(when string, not ...string) {
	c.t.Helper()
	content, err := os.ReadFile(c.path)
	if err != nil || strings.Count(string(content), "\n") != 1 {
		c.t.Fatalf("%s: the file has %d keys, %v", when, strings.Count(string(content), "\n"), err)
	}
	c.restart()
	c.readable(when)
	roots, _ := auth.EnsureRootKeys(c.path)
	for _, id := range not {
		if roots[0].ID() == id {
			c.t.Fatalf("%s: it is the old key", when)
		}
	}
	if id := c.state.View().Cluster().GetRootKeyId(); id != roots[0].ID() {
		c.t.Fatalf("%s: the state has root key %s, the node %s", when, id, roots[0].ID())
	}
}

func (c *cluster) rootID() string {
	roots, err := auth.EnsureRootKeys(c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	return roots[0].ID()
}

func TestRotation(t *testing.T) {
	c := newCluster(t, 3)
	before := c.state.View()
	first := c.rootID()
	r, err := auth.RotateRootKey(t.Context(), c.config())
	if err != nil || r.AccessKeys != 3 || r.Secrets != 3 || r.RootKeyID == first {
		t.Fatalf("%+v, %v", r, err)
	}
	c.readable("with the keyring that rotated")
	c.rotated("after the rotation", first)
	for record := range c.state.View().Secrets("", "") {
		old, _ := before.Secret(record.GetSecret().GetNamespace(), record.GetSecret().GetName())
		if !proto.Equal(old.GetSecret(), record.GetSecret()) {
			t.Errorf("the secret was %v, is %v", old.GetSecret(), record.GetSecret())
		}
	}
	c.addSecret("later")
	c.addKey()
	second := c.rootID()
	if r, err := auth.RotateRootKey(t.Context(), c.config()); err != nil || r.AccessKeys != 4 || r.Secrets != 4 {
		t.Fatalf("the second: %+v, %v", r, err)
	}
	c.rotated("after the second", first, second)
	if r, err := auth.FinishRotation(t.Context(), c.config()); err != nil || r != (auth.Rotation{}) {
		t.Errorf("nothing to finish: %+v, %v", r, err)
	}
}

var errCrash = errors.New("crash")

// A crash before or after any step leaves everything readable, and the next start ends the rotation.
func TestCrashInARotation(t *testing.T) {
	for before := range 2 {
		for at := 1; ; at++ {
			c := newCluster(t, 2)
			if at%2 == 0 { // as in a cluster that was rotated before
				if _, err := auth.RotateRootKey(t.Context(), c.config()); err != nil {
					t.Fatal(err)
				}
				c.restart()
			}
			first := c.rootID()
			c.steps = 0
			c.crash = func(step int, early bool) error {
				if step == at && early == (before == 0) {
					return errCrash
				}
				return nil
			}
			_, err := auth.RotateRootKey(t.Context(), c.config())
			c.crash = nil
			if err == nil { // there was no such step
				if at < 7 {
					t.Errorf("a rotation had only %d steps", at)
				}
				break
			}
			if !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			when := fmt.Sprintf("after a crash at step %d", at)
			c.readable(when + ", in the same process")
			c.restart()
			c.readable(when)
			if at%3 == 0 { // by hand, or at the start
				_, err = auth.RotateRootKey(t.Context(), c.config())
			} else {
				_, err = auth.FinishRotation(t.Context(), c.config())
			}
			if err != nil {
				t.Fatal(err)
			}
			c.rotated(when+" and the end", first)
		}
	}
}

// A crash of the very first write leaves the old key alone.
func TestUnwritableRootKey(t *testing.T) {
	c := newCluster(t, 1)
	cfg := c.config()
	cfg.Path = filepath.Join(c.path, "not", "a", "directory")
	if _, err := auth.RotateRootKey(t.Context(), cfg); err == nil {
		t.Fatal("a key was rotated that could not be stored")
	}
	c.readable("with the same keyring")
	if _, err := auth.RotateRootKey(t.Context(), c.config()); err != nil {
		t.Fatal(err)
	}
	c.rotated("later")
}

// Secrets that are made while the key is rotated, over and over, are sealed with a key that stays, or refused.
func TestSealingDuringRotations(t *testing.T) {
	c := newCluster(t, 5)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var mu sync.Mutex
	made, refused := map[string]string{}, 0
	for w := range 3 {
		writers.Go(func() {
			for i := range 2000 {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("w%d-%d", w, i)
				_, err := c.propose(t.Context(), createSecret(c.keyring, name, name))
				mu.Lock()
				switch {
				case err == nil:
					made["default/"+name] = name
				case fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_ROOT_KEY_ROTATED):
					refused++
				case !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED):
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	for range 20 {
		if _, err := auth.RotateRootKey(t.Context(), c.config()); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	writers.Wait()
	maps.Copy(c.values, made)
	c.rotated("after rotations with writers")
	t.Logf("%d made, %d refused", len(made), refused)
}

func TestDamagedRootKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := auth.EnsureRootKeys(path); err != nil {
		t.Fatal(err)
	}
	good, _ := os.ReadFile(path)
	for name, content := range map[string]string{"empty": "", "half a line": string(good) + string(good[:30]), "a blank line": string(good) + "\n" + string(good)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := auth.EnsureRootKeys(path); err == nil {
			t.Errorf("a file with %s was taken", name)
		}
	}
}
