package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/mayfly-faas/mayfly/controlplane/store"
)

const crashDir = "MAYFLY_STORE_CRASH_DIR"

// TestMain turns this binary into the process that is to be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := proposeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
	os.Exit(m.Run())
}

// proposeUntilKilled proposes from several callers and prints what was acknowledged; snapshots are frequent.
func proposeUntilKilled(dir string) error {
	certs, err := authority()
	if err != nil {
		return err
	}
	s, err := openState(dir)
	if err != nil {
		return err
	}
	st, err := store.Open(crashConfig(store.Config{Dir: filepath.Join(dir, "raft"), State: s, TLS: certs}))
	if err != nil {
		return err
	}
	go st.Run(context.Background())
	if _, err := st.WaitLeader(context.Background()); err != nil {
		return err
	}
	failed := make(chan error)
	for range 8 {
		go func() {
			for {
				id := uuid.NewString()
				if _, err := st.Propose(context.Background(), putNode(id)); err != nil {
					failed <- err
					return
				}
				fmt.Println(id)
			}
		}()
	}
	return <-failed
}

func crashConfig(c store.Config) store.Config {
	c.Address, c.Bootstrap, c.MinFreeBytes = "127.0.0.1:0", true, 1
	c.LeaderLease = 25 * time.Millisecond
	c.HeartbeatTimeout, c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = 50*time.Millisecond, 30*time.Millisecond, 100, 20
	return c
}

// What was acknowledged before kill -9 is there afterwards, whatever the process was doing.
func TestKilledUnderLoad(t *testing.T) {
	rounds := 6
	if os.Getenv("MAYFLY_TEST_LONG") != "" {
		rounds = 100
	}
	dir := t.TempDir()
	var acknowledged []string
	for round := range rounds {
		acknowledged = append(acknowledged, crash(t, dir, time.Duration(rand.IntN(300))*time.Millisecond)...)
		n := &node{t: t, dir: dir, net: newNetwork(), tune: func(c *store.Config) { *c = crashConfig(*c) }}
		n.tls, _ = authority()
		n.start(true)
		n.lead()
		if err := n.Barrier(within(t)); err != nil {
			t.Fatal(err)
		}
		for _, id := range acknowledged {
			if !n.has(id) {
				t.Fatalf("round %d: %s was acknowledged and is lost (%d entries)", round, id, len(acknowledged))
			}
		}
		if round%2 == 0 {
			n.must(putNode("from the parent"))
		}
		n.stop()
	}
	t.Logf("%d acknowledged proposals survived %d kills", len(acknowledged), rounds)
}

// crash runs the child until some time after its first acknowledgement, kills it and answers what it acknowledged.
func crash(t *testing.T, dir string, life time.Duration) []string {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashDir+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var acknowledged []string
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		if len(acknowledged) == 0 {
			time.AfterFunc(life, func() { child.Process.Kill() })
		}
		acknowledged = append(acknowledged, line[:len(line)-1])
	}
	child.Wait()
	if len(acknowledged) == 0 {
		t.Fatal("the child acknowledged nothing")
	}
	return acknowledged
}
