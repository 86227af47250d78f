package state_test

import (
	"bytes"
	"cmp"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// anyCommand draws commands on few names, so that they meet.
func anyCommand(t *rapid.T) *statev1.Command {
	fn := func() string { return rapid.SampledFrom([]string{"a", "b", "ab"}).Draw(t, "function") }
	ns := func() string { return rapid.SampledFrom([]string{"default", "n1", "n2"}).Draw(t, "namespace") }
	n := func() int { return rapid.IntRange(0, 4).Draw(t, "n") }
	rev := func() uint64 { return rapid.SampledFrom([]uint64{0, 0, 0, 2, 5, 9}).Draw(t, "revision") }
	ver := func() string { return rapid.SampledFrom([]string{"1", "2", "3", "$LATEST", "01"}).Draw(t, "version") }
	weights := func() map[string]float64 {
		return rapid.MapOfN(rapid.SampledFrom([]string{"1", "2", "3", "4"}), rapid.SampledFrom([]float64{0, 0.1, 0.2, 0.7, 1, 2}), 0, 3).Draw(t, "weights")
	}
	makers := []func() *statev1.Command{
		func() *statev1.Command { return createFunction(ns(), fn(), n()) },
		func() *statev1.Command { return createFunction("default", fn(), n()) },
		func() *statev1.Command {
			c := createFunction("default", fn(), n())
			c.GetCreateFunction().Publish = true
			return c
		},
		func() *statev1.Command {
			c := updateCode(fn(), n(), rev())
			c.GetUpdateFunctionCode().Publish = n() == 0
			return c
		},
		func() *statev1.Command {
			return updateConfiguration(&statev1.UpdateFunctionConfiguration{
				Name: fn(), ExpectedRevision: rev(),
				Configuration: &mayflyv1.FunctionConfiguration{MemoryMb: int32(128 * n()), Environment: map[string]string{"A": "1", "B": fmt.Sprint(n()), "C": "3"}},
				Replace:       rapid.SliceOfN(rapid.SampledFrom([]string{"tags", "environment", "description", "memory"}), 0, 2).Draw(t, "replace"),
				Tags:          map[string]string{"x": fmt.Sprint(n()), "y": "z"},
			})
		},
		func() *statev1.Command {
			return updateConfiguration(&statev1.UpdateFunctionConfiguration{
				Name: fn(), Replace: []string{"secret_environment", "secret_files"},
				Configuration: &mayflyv1.FunctionConfiguration{
					SecretEnvironment: rapid.MapOfN(rapid.SampledFrom([]string{"A", "B"}), rapid.SampledFrom([]string{"s1", "s2"}), 0, 2).Draw(t, "variables"),
					SecretFiles:       rapid.SliceOfN(rapid.SampledFrom([]string{"s1", "s2"}), 0, 1).Draw(t, "files"),
				},
			})
		},
		func() *statev1.Command { return createSecret(ns(), fmt.Sprint("s", n()), n() == 0) },
		func() *statev1.Command { return createSecret("default", fmt.Sprint("s", n()), false) },
		func() *statev1.Command {
			return updateSecret(&statev1.UpdateSecret{
				Name: fmt.Sprint("s", n()), SealedValue: []byte("SeAlEd2"), RootKeyId: "r1", SizeBytes: 1, Binary: n() == 0, ExpectedRevision: rev(),
			})
		},
		func() *statev1.Command { return deleteSecret(fmt.Sprint("s", n()), n() == 0, rev()) },
		func() *statev1.Command { return deleteFunction(fn(), rev()) },
		func() *statev1.Command { return setState(fn(), uint64(n()), mayflyv1.FunctionState(n()%4)) },
		func() *statev1.Command { return reserve(fn(), new(int32(n()*300-300))) },
		func() *statev1.Command { return setURL(fn(), &mayflyv1.FunctionUrl{Qualifier: ver()}) },
		func() *statev1.Command {
			return publish(&statev1.PublishVersion{Function: fn(), ExpectedRevision: rev()})
		},
		func() *statev1.Command {
			return publish(&statev1.PublishVersion{Function: fn(), CodeDigest: digest(n())})
		},
		func() *statev1.Command { return deleteVersion(fn(), int64(n())) },
		func() *statev1.Command {
			return createAlias(fn(), rapid.SampledFrom([]string{"live", "x"}).Draw(t, "alias"), ver(), weights())
		},
		func() *statev1.Command {
			return updateAlias(&statev1.UpdateAlias{Function: fn(), Name: "live", Version: ver(), Replace: []string{"weights"}, Weights: weights()})
		},
		func() *statev1.Command { return deleteAlias(fn(), "live", rev()) },
		func() *statev1.Command {
			return createNamespace(ns(), fmt.Sprintf("%012d", n()), &mayflyv1.Quotas{Functions: int32(n()), CodeBytes: int64(100 * n()), Secrets: int32(n())})
		},
		func() *statev1.Command {
			return updateNamespace(ns(), &mayflyv1.Quotas{Concurrency: int32(n() * 250), CodeBytes: int64(n() * 150)}, rev())
		},
		func() *statev1.Command { return deleteNamespace(ns()) },
		func() *statev1.Command {
			return createKey(fmt.Sprint("AKIA", n()), rapid.SampledFrom([]string{"*", "default", "n1", "n9"}).Draw(t, "key ns"), mayflyv1.Role(n()))
		},
		func() *statev1.Command {
			return updateKey(&statev1.UpdateAccessKey{Id: fmt.Sprint("AKIA", n()), Disabled: new(true), ExpectedRevision: rev()})
		},
		func() *statev1.Command { return deleteKey(fmt.Sprint("AKIA", n())) },
		func() *statev1.Command { return putNode(fmt.Sprint("id", n()), fmt.Sprint("node", n())) },
		func() *statev1.Command { return deleteNode(fmt.Sprint("id", n())) },
		func() *statev1.Command {
			return updateSettings(&mayflyv1.Settings{Region: rapid.SampledFrom([]string{"", "eu-1"}).Draw(t, "region"), UrlDomain: "d"}, rev())
		},
		func() *statev1.Command { return setRootKey(fmt.Sprint("r", n())) },
		func() *statev1.Command {
			return &statev1.Command{Operation: &statev1.Command_ResealSecret{ResealSecret: &statev1.ResealSecret{
				Namespace: "default", Name: fmt.Sprint("s", n()), FromRootKeyId: "r1", SealedValue: []byte("SeAlEd3"), RootKeyId: fmt.Sprint("r", n()),
			}}}
		},
		func() *statev1.Command {
			return &statev1.Command{Operation: &statev1.Command_ResealAccessKey{ResealAccessKey: &statev1.ResealAccessKey{
				Id: fmt.Sprint("AKIA", n()), FromRootKeyId: "r1", SealedSecret: []byte("SeAlEd3"), RootKeyId: fmt.Sprint("r", n()),
			}}}
		},
		initCluster,
		func() *statev1.Command { return &statev1.Command{} },
	}
	c := rapid.SampledFrom(makers).Draw(t, "command")()
	c.Time = at(rapid.Int64Range(0, 50).Draw(t, "time"))
	c.ProposalId = rapid.SampledFrom([]string{"", "", "p1", "p2", rapid.StringMatching("[a-z]{8}").Draw(t, "id")}).Draw(t, "proposal")
	return c
}

func anyLog(t *rapid.T) []state.Entry {
	commands := rapid.SliceOfN(rapid.Custom(anyCommand), 1, 60).Draw(t, "log")
	index := uint64(0)
	entries := []state.Entry{{Index: 1, Term: 1, Command: initCluster()}}
	for _, c := range commands {
		// Raft's own entries leave gaps.
		index += uint64(rapid.IntRange(1, 2).Draw(t, "gap"))
		entries = append(entries, state.Entry{Index: index + 1, Term: 1 + index/20, Command: c})
	}
	return entries
}

func (m *machine) applyAll(entries []state.Entry) []*statev1.Result {
	m.t.Helper()
	r, err := m.state.Apply(entries)
	if err != nil {
		m.t.Fatalf("apply: %v", err)
	}
	return r
}

func sameResults(t *rapid.T, what string, want, got []*statev1.Result) {
	for i := range want {
		if !proto.Equal(want[i], got[i]) {
			t.Fatalf("%s: result %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

// The same log gives the same results and the same snapshot, however it is cut into batches, and through a restart, a
// repeated tail and a snapshot in its middle.
func TestReplayIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := anyLog(t)
		cut := rapid.IntRange(0, len(log)).Draw(t, "cut")

		one := newMachine(t)
		defer one.close()
		var results []*statev1.Result
		for _, e := range log {
			results = append(results, one.applyAll([]state.Entry{e})...)
		}
		want, records := one.snapshot(), one.records()

		batched := newMachine(t)
		defer batched.close()
		got := append(batched.applyAll(log[:cut]), batched.applyAll(log[cut:])...)
		sameResults(t, "in two batches", results, got)
		if !bytes.Equal(want, batched.snapshot()) || records != batched.records() {
			t.Fatalf("two batches give another state")
		}

		restarted := newMachine(t)
		restarted.applyAll(log[:cut])
		restarted.close()
		restarted = openMachine(t, restarted.fs, 0)
		defer restarted.close()
		restarted.applyAll(log[:cut])
		sameResults(t, "after a restart", results[cut:], restarted.applyAll(log[cut:]))
		if !bytes.Equal(want, restarted.snapshot()) || records != restarted.records() {
			t.Fatalf("a restart gives another state:\n%s\n---\n%s", records, restarted.records())
		}

		source, restored := newMachine(t), newMachine(t)
		defer source.close()
		defer restored.close()
		source.applyAll(log[:cut])
		restored.applyAll(log[:cut/2])
		if err := restored.state.Restore(bytes.NewReader(source.snapshot())); err != nil {
			t.Fatalf("restore: %v", err)
		}
		sameResults(t, "after a snapshot", results[cut:], restored.applyAll(log[cut:]))
		if !bytes.Equal(want, restored.snapshot()) || records != restored.records() {
			t.Fatalf("a snapshot gives another state:\n%s\n---\n%s", records, restored.records())
		}
	})
}

// What is refused changes no record, quotas are never exceeded by a change that passes, and time never goes back.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		defer m.close()
		before, last := m.records(), m.state.View()
		for _, e := range anyLog(t) {
			r := m.applyAll([]state.Entry{e})[0]
			v, after := m.state.View(), m.records()
			if r.GetRefusal() != nil && before != after {
				t.Fatalf("refused command %v left a trace", e.Command)
			}
			if last.Time() != nil && v.Time().AsTime().Before(last.Time().AsTime()) {
				t.Fatalf("time went back from %v to %v", last.Time(), v.Time())
			}
			checkInvariants(t, v, last)
			before, last = after, v
		}
	})
}

func checkInvariants(t *rapid.T, v, last state.View) {
	for f := range v.Functions("", "") {
		if _, ok := v.Namespace(f.GetNamespace()); !ok {
			t.Fatalf("function %s has no namespace", f.GetName())
		}
		if !v.CodeReferenced(f.GetCode().GetDigest()) {
			t.Fatalf("code of %s is not referenced", f.GetName())
		}
		for x := range v.Versions(f.GetNamespace(), f.GetName(), 0) {
			if x.GetNumber() > f.GetLastVersion() || x.GetArn() != fmt.Sprintf("%s:%d", f.GetArn(), x.GetNumber()) {
				t.Fatalf("version %v of %v", x, f)
			}
		}
		for a := range v.Aliases(f.GetNamespace(), f.GetName(), "") {
			for number := range a.GetWeights() {
				versionExists(t, v, f, number)
			}
			versionExists(t, v, f, a.GetVersion())
		}
	}
	for n := range v.Namespaces() {
		u, was := v.Usage(n.GetName()), last.Usage(n.GetName())
		q := n.GetQuotas()
		if u.Functions > int(q.GetFunctions()) && u.Functions > was.Functions || u.Secrets > cmp.Or(int(q.GetSecrets()), state.DefaultSecrets) && u.Secrets > was.Secrets || u.CodeBytes > q.GetCodeBytes() && u.CodeBytes > was.CodeBytes ||
			u.ReservedConcurrency > int64(q.GetConcurrency()) && u.ReservedConcurrency > was.ReservedConcurrency {
			t.Fatalf("namespace %v uses %v, before %v", n, u, was)
		}
	}
}

func versionExists(t *rapid.T, v state.View, f *mayflyv1.Function, version string) {
	if version == state.Latest {
		return
	}
	var n int64
	if _, err := fmt.Sscan(version, &n); err != nil {
		t.Fatalf("version %q is no number", version)
	}
	if _, ok := v.Version(f.GetNamespace(), f.GetName(), n); !ok {
		t.Fatalf("an alias of %s names version %s, which is gone", f.GetName(), version)
	}
}
