package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// filled is a machine with n functions.
func filled(t *testing.T, n int) *machine {
	t.Helper()
	m := ready(t)
	for i := range n {
		m.ok(createFunction("default", fmt.Sprint("f", i), i))
	}
	return m
}

// A snapshot stops nothing and doesn't see what is applied after it was opened, not even a restore.
func TestSnapshotIsOfOneMoment(t *testing.T) {
	m := filled(t, 20)
	want, other := m.snapshot(), filled(t, 3).snapshot()
	snap, err := m.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	m.ok(deleteFunction("f0", 0))
	if err := m.state.Restore(bytes.NewReader(other)); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := snap.Write(&got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatal("the snapshot changed")
	}
	if index, err := state.ReadSnapshotIndex(&got); err != nil || index != snap.Index() || index != 21 {
		t.Fatalf("index %d, %v", index, err)
	}
}

// Any damage to a snapshot is found, and leaves what there was.
func TestDamagedSnapshotIsRefused(t *testing.T) {
	good := filled(t, 10).snapshot()
	m := filled(t, 2)
	records, snapshot := m.records(), m.snapshot()
	check := func(what string, damaged []byte) {
		t.Helper()
		if err := m.state.Restore(bytes.NewReader(damaged)); err == nil {
			t.Fatalf("%s was restored", what)
		}
		if m.records() != records || !bytes.Equal(m.snapshot(), snapshot) {
			t.Fatalf("%s left a trace", what)
		}
	}
	for i := 0; i < len(good); i += 13 {
		check(fmt.Sprint("a snapshot cut off at ", i), good[:i])
		damaged := bytes.Clone(good)
		damaged[i] ^= 0x10
		check(fmt.Sprint("a snapshot with byte ", i, " damaged"), damaged)
	}
	var newer bytes.Buffer
	protodelim.MarshalTo(&newer, &statev1.SnapshotHeader{Version: 2})
	check("a newer snapshot", newer.Bytes())
	m.ok(createFunction("default", "later", 1))
	if err := m.state.Restore(bytes.NewReader(good)); err != nil {
		t.Fatal(err)
	}
}

// A crash at any moment of a restore leaves the old state or the new one.
func TestCrashWhileRestoring(t *testing.T) {
	snapshot := filled(t, 300).snapshot()
	crashed := map[string]int{}
	for point := 1; ; point++ {
		clone, done := crashAt(t, point, snapshot)
		m := openMachine(t, clone, 0)
		n := 0
		for range m.state.View().Functions("default", "") {
			n++
		}
		index := m.state.AppliedIndex()
		m.close()
		if !(n == 2 && index == 3) && !(n == 300 && index == 301) {
			t.Fatalf("crash before operation %d: %d functions at entry %d", point, n, index)
		}
		crashed[fmt.Sprint(n)]++
		if done {
			break
		}
	}
	if crashed["2"] < 5 || crashed["300"] < 1 {
		t.Fatalf("the crashes hit too little: %v", crashed)
	}
}

// crashAt is the disk as a crash before the nth operation of a restore leaves it; done tells that the restore had ended.
func crashAt(t *testing.T, n int, snapshot []byte) (clone vfs.FS, done bool) {
	t.Helper()
	mem := vfs.NewCrashableMem()
	cfg := func() vfs.CrashCloneCfg {
		return vfs.CrashCloneCfg{UnsyncedDataPercent: 50 * (n % 3), RNG: rand.New(rand.NewPCG(uint64(n), 1))}
	}
	var mu sync.Mutex
	ops, armed := 0, false
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if armed {
			if ops++; ops == n {
				clone = mem.CrashClone(cfg())
			}
		}
		return nil
	}))
	m := openMachine(t, fs, 0)
	m.ok(initCluster())
	m.ok(createFunction("default", "old1", 1))
	m.ok(createFunction("default", "old2", 1))
	if err := m.state.Flush(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	armed = true
	mu.Unlock()
	if err := m.state.Restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	done, armed = clone == nil, false
	if done {
		clone = mem.CrashClone(vfs.CrashCloneCfg{})
	}
	mu.Unlock()
	m.close()
	return clone, done
}

// After a crash without a flush the state is what it was after some entry, and replaying the log makes it whole.
func TestCrashWithoutFlush(t *testing.T) {
	mem := vfs.NewCrashableMem()
	m := openMachine(t, mem, 0)
	log := []state.Entry{{Index: 1, Term: 1, Command: initCluster()}}
	for i := range 3000 {
		c := createFunction("default", fmt.Sprint("f", i), i)
		c.ProposalId = fmt.Sprint("p", i)
		log = append(log, state.Entry{Index: uint64(i + 2), Term: 1, Command: c})
	}
	var clones []vfs.FS
	for i, e := range log {
		m.applyAll([]state.Entry{e})
		if i%500 == 499 {
			clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{}))
		}
	}
	want := m.snapshot()
	m.close()
	behind := 0
	for i, fs := range clones {
		c := openMachine(t, fs, 0)
		n := 0
		for range c.state.View().Functions("default", "") {
			n++
		}
		index := c.state.AppliedIndex()
		if index > 0 && n != int(index)-1 || index > uint64(500*(i+1)) {
			t.Fatalf("%d functions at entry %d", n, index)
		}
		if index < uint64(500*(i+1)) {
			behind++
		}
		c.applyAll(log)
		if !bytes.Equal(c.snapshot(), want) {
			t.Fatal("replaying the log gives another state")
		}
		c.close()
	}
	if behind == 0 {
		t.Fatal("no crash lost anything: the test tests nothing")
	}
}

func TestProposalWindow(t *testing.T) {
	m := ready(t)
	first := putNode("id1", "a")
	first.ProposalId = "first"
	want := m.ok(first)
	second := putNode("id2", "a")
	second.ProposalId = "first"
	if r := m.apply(second); !proto.Equal(r, want) {
		t.Fatalf("a known proposal answered %v, want %v", r, want)
	}
	if r, err := m.state.Proposed("first"); err != nil || !proto.Equal(r, want) {
		t.Fatalf("%v, %v", r, err)
	}
	fill := func(n int) {
		batch := make([]state.Entry, n)
		for i := range batch {
			m.index++
			batch[i] = state.Entry{Index: m.index, Term: 1, Command: &statev1.Command{ProposalId: fmt.Sprint("filler", m.index)}}
		}
		m.applyAll(batch)
	}
	fill(state.ProposalWindow - 1)
	m.close()
	*m = *openMachine(t, m.fs, m.index)
	if r := m.apply(second); !proto.Equal(r, want) {
		t.Fatalf("the oldest proposal in the window answered %v, want %v", r, want)
	}
	fill(1)
	if r, err := m.state.Proposed("first"); err != nil || r != nil {
		t.Fatalf("a proposal out of the window is known: %v, %v", r, err)
	}
	if r := m.ok(putNode("id3", "b")); r.GetIndex() != m.index {
		t.Fatalf("%v", r)
	}
	second.GetPutNode().GetNode().Name = "c"
	if r := m.apply(second); r.GetIndex() != m.index || r.GetNode().GetId() != "id2" {
		t.Fatalf("a forgotten proposal answered %v", r)
	}
}

func TestSkippedEntries(t *testing.T) {
	m := ready(t)
	c := putNode("id1", "a")
	c.ProposalId = "p"
	want := m.ok(c)
	before := m.snapshot()
	again, err := m.state.Apply([]state.Entry{{Index: want.GetIndex(), Term: 1, Command: c}, {Index: 1, Term: 1, Command: putNode("x", "x")}})
	if err != nil || !proto.Equal(again[0], want) || again[1].GetIndex() != 1 || again[1].GetResource() != nil {
		t.Fatalf("%v, %v", again, err)
	}
	if !bytes.Equal(before, m.snapshot()) {
		t.Fatal("a skipped entry changed something")
	}
}

func TestWatch(t *testing.T) {
	m := ready(t)
	v := m.state.View()
	select {
	case <-v.Changed():
		t.Fatal("changed without a change")
	default:
	}
	waited := make(chan error)
	go func() { waited <- m.state.WaitIndex(t.Context(), v.Index()+2) }()
	m.ok(putNode("id1", "a"))
	<-v.Changed()
	m.ok(putNode("id2", "b"))
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if _, ok := v.Node("id1"); ok {
		t.Fatal("an old view shows a later node")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.state.WaitIndex(ctx, 1<<40); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	v = m.state.View()
	if err := m.state.Restore(bytes.NewReader(filled(t, 1).snapshot())); err != nil {
		t.Fatal(err)
	}
	<-v.Changed()
}

// failingTable fails its writes when told to.
type failingTable struct {
	*table.Table
	broken bool
}

func (f *failingTable) Write(rows []table.Row) error {
	if f.broken {
		return errors.New("disk on fire")
	}
	return f.Table.Write(rows)
}

// A node that can't write, or that is too old, stops where it is.
func TestStopsWhenItCantGoOn(t *testing.T) {
	tbl, err := table.Open(table.Config{Dir: "state", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	f := &failingTable{Table: tbl}
	s, err := state.New(state.Config{Table: f})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Apply([]state.Entry{{Index: 1, Command: initCluster()}}); err != nil {
		t.Fatal(err)
	}
	f.broken = true
	for range 2 {
		if _, err := s.Apply([]state.Entry{{Index: 2, Command: putNode("id", "a")}}); err == nil {
			t.Fatal("an entry was applied without being written")
		}
		f.broken = false
	}
	if _, ok := s.View().Node("id"); ok || s.AppliedIndex() != 1 {
		t.Fatal("a failed batch is visible")
	}
	if _, err := s.Snapshot(); err == nil {
		t.Fatal("a stopped state was snapshot")
	}
}

func TestRowsOfNewerVersionsAreRefused(t *testing.T) {
	fs := vfs.NewMem()
	for what, row := range map[string]table.Row{
		"unknown kind":      {Key: []byte("zebra"), Value: []byte{}},
		"undecodable":       {Key: []byte("nx"), Value: []byte("\xff\xff")},
		"under another key": {Key: []byte("nx"), Value: []byte{}},
		"short proposal":    {Key: []byte("p123"), Value: []byte{}},
	} {
		tbl, err := table.Open(table.Config{Dir: what, FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		if err := tbl.Write([]table.Row{row}); err != nil {
			t.Fatal(err)
		}
		if _, err := state.New(state.Config{Table: tbl}); err == nil {
			t.Errorf("a table with a row of %s was loaded", what)
		}
		tbl.Close()
	}
}
