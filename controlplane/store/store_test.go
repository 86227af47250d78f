package store_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/controlplane/store"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func wantReason(t *testing.T, err error, code codes.Code, reason mayflyv1.ErrorReason) {
	t.Helper()
	if f, ok := errors.AsType[*fault.Error](err); !ok || f.Code != code || f.Reason != reason || len(f.Message) < 20 {
		t.Fatalf("error %v, want %v with %v and a message", err, code, reason)
	}
}

func TestProposeFillsAppliesAndRefuses(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	c := createFunction("f")
	r := n.must(c)
	if c.GetProposalId() == "" || c.GetTime() == nil {
		t.Fatalf("proposal id and time were not filled in: %v", c)
	}
	f, ok := n.View().Function("default", "f")
	if !ok || f.GetMeta().GetRevision() != r.GetIndex() || n.View().Index() < r.GetIndex() {
		t.Fatalf("after Propose the view is at %d and has %v", n.View().Index(), f)
	}
	if again := n.must(c); again.GetIndex() != r.GetIndex() {
		t.Fatalf("the same proposal answered %v, then %v", r, again)
	}
	_, err := n.Propose(t.Context(), createFunction("f"))
	wantReason(t, err, codes.AlreadyExists, mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS)
	if err := n.Barrier(within(t)); err != nil {
		t.Fatal(err)
	}
}

func TestProposeRefusesLargeEntries(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	before := n.View().Index()
	c := createFunction("f")
	c.GetCreateFunction().GetFunction().StateReason = strings.Repeat("x", store.MaxEntryBytes)
	_, err := n.Propose(t.Context(), c)
	wantReason(t, err, codes.InvalidArgument, mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE)
	if n.View().Index() != before {
		t.Fatal("the entry was applied")
	}
}

func TestDiskBelowWatermark(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	n.free.Store(999)
	eventually(t, "writes are refused", func() bool {
		_, err := n.Propose(within(t), putNode("x"))
		if err == nil {
			return false
		}
		wantReason(t, err, codes.ResourceExhausted, mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL)
		return true
	})
	if err := n.Barrier(within(t)); err != nil {
		t.Fatalf("reads must go on: %v", err)
	}
	n.free.Store(1000)
	eventually(t, "writes are taken again", func() bool {
		_, err := n.Propose(within(t), putNode("x"))
		return err == nil
	})
	n.free.Store(1)
	n.stop()
	n.start(false)
	_, err := n.Propose(within(t), putNode("y"))
	wantReason(t, err, codes.ResourceExhausted, mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL)
}

func TestProposalsAreBatched(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			if _, err := n.Propose(within(t), putNode(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 500 {
		if !n.has(fmt.Sprint(i)) {
			t.Fatalf("node %d is missing", i)
		}
	}
}

// A restart has everything, and most of it before there is a leader.
func TestRestart(t *testing.T) {
	n := newNode(t, func(c *store.Config) { c.TrailingLogs = 5 })
	n.init()
	id := n.NodeID()
	for round := range 3 {
		for i := range 40 {
			n.must(putNode(fmt.Sprint(round, "-", i)))
		}
		if round == 1 {
			if err := n.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		n.stop()
		n.start(true)
		if n.NodeID() != id {
			t.Fatalf("node id %s became %s", id, n.NodeID())
		}
		if !n.has(fmt.Sprint(round, "-", 39)) {
			t.Fatal("what the table had is missing before a leader is elected")
		}
		n.lead()
		if err := n.Barrier(within(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// A table that lost everything comes back from snapshot and log.
func TestTableBehindSnapshot(t *testing.T) {
	n := newNode(t, func(c *store.Config) { c.TrailingLogs = 1 })
	n.init()
	for i := range 30 {
		n.must(putNode(fmt.Sprint(i)))
	}
	if err := n.Snapshot(); err != nil {
		t.Fatal(err)
	}
	n.must(putNode("late"))
	n.must(putNode("last"))
	n.stop()
	if err := os.RemoveAll(filepath.Join(n.dir, "state")); err != nil {
		t.Fatal(err)
	}
	n.start(false)
	if !n.has("29") || !n.has("late") {
		t.Fatal("snapshot or committed log are missing before there is a leader")
	}
	n.lead()
	if err := n.Barrier(within(t)); err != nil || !n.has("last") {
		t.Fatalf("the log's end is missing: %v", err)
	}
}

func TestStateWithoutItsLogIsRefused(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	n.stop()
	if err := os.RemoveAll(filepath.Join(n.dir, "raft")); err != nil {
		t.Fatal(err)
	}
	s, err := openState(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n.state = s
	if st, err := store.Open(n.config(true)); err == nil {
		st.Close()
		t.Fatal("a state was taken up with a log that is not its own")
	}
}

func TestNodeID(t *testing.T) {
	const id = "7f3c6a52-70c1-4a2b-9c63-0f6a1c2b3d4e"
	n := newNode(t, func(c *store.Config) { c.NodeID = id })
	n.lead()
	if n.NodeID() != id || n.Leader().ID != id {
		t.Fatalf("node id %s, leader %v", n.NodeID(), n.Leader())
	}
	n.stop()
	for _, bad := range []string{"no-uuid", "7f3c6a52-70c1-4a2b-9c63-0f6a1c2b3d4f"} {
		s, err := openState(n.dir)
		if err != nil {
			t.Fatal(err)
		}
		n.state = s
		cfg := n.config(false)
		cfg.NodeID = bad
		if st, err := store.Open(cfg); err == nil {
			st.Close()
			t.Fatalf("node id %q was taken in the place of %s", bad, id)
		}
		s.Close()
	}
}

func TestConfigIsValidated(t *testing.T) {
	certs, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	s, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	good := func() store.Config {
		return store.Config{Dir: t.TempDir(), State: s, Address: "127.0.0.1:0", TLS: certs}
	}
	for name, spoil := range map[string]func(*store.Config){
		"no directory":     func(c *store.Config) { c.Dir = "" },
		"no state":         func(c *store.Config) { c.State = nil },
		"no address":       func(c *store.Config) { c.Address = "" },
		"any address":      func(c *store.Config) { c.Address = "0.0.0.0:0" },
		"no TLS":           func(c *store.Config) { c.TLS = store.TLS{} },
		"clients unproven": func(c *store.Config) { c.TLS.Server = &tls.Config{Certificates: certs.Server.Certificates} },
		"servers unproven": func(c *store.Config) { c.TLS.Client = &tls.Config{InsecureSkipVerify: true} },
	} {
		cfg := good()
		spoil(&cfg)
		if st, err := store.Open(cfg); err == nil {
			st.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// Raft's port answers nobody without a certificate of the cluster.
func TestTransportNeedsCertificates(t *testing.T) {
	n := newNode(t, nil)
	n.lead()
	c, err := net.Dial("tcp", n.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	c.Write([]byte{0, 1, 2, 3, 4, 5, 6, 7})
	b := make([]byte, 100)
	if k, err := c.Read(b); err == nil && k > 0 && b[0] != 21 {
		t.Fatalf("plain TCP was answered with %q", b[:k])
	}
	stranger, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	client := stranger.Client.Clone()
	client.RootCAs, client.ServerName = n.tls.Client.RootCAs, "127.0.0.1"
	raw, err := net.Dial("tcp", n.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	secured := tls.Client(raw, client)
	secured.Write([]byte{0})
	if _, err := secured.Read(b); err == nil {
		t.Fatal("a certificate of another authority was accepted")
	}
}

func TestCloseEndsWaitingProposals(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	n.stop()
	_, err := n.Propose(t.Context(), putNode("x"))
	wantReason(t, err, codes.Unavailable, mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER)
}

// A command of a newer version stops the node, and it says so, rather than letting its state become another one.
func TestUnknownCommandStopsTheNode(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	c := &statev1.Command{}
	c.ProtoReflect().SetUnknown([]byte{0xfa, 0x3f, 0x00})
	if _, err := n.Propose(within(t), c); err == nil {
		t.Fatal("an unknown command was applied")
	}
	if err := <-n.ran; err == nil {
		t.Fatal("Run goes on")
	}
	n.ran <- nil
	if _, err := n.Propose(within(t), putNode("x")); err == nil {
		t.Fatal("the node goes on applying")
	}
	if n.has("x") {
		t.Fatal("a later command was applied")
	}
	if err := n.Snapshot(); err == nil {
		t.Fatal("a stopped state was snapshot")
	}
}

func TestProposeEndsWithItsContext(t *testing.T) {
	n := newNode(t, nil)
	n.init()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Propose(ctx, putNode("x")); err == nil {
		t.Fatal("no error with an ended context")
	}
}

func BenchmarkPropose(b *testing.B) {
	n := newNode(b, func(c *store.Config) { c.Logger = nil })
	n.init()
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			b.SetParallelism(callers / 2)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := n.Propose(context.Background(), putNode("same")); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
