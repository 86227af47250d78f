package logstore_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/controlplane/store/logstore"
)

const crashDir = "MAYFLY_LOGSTORE_CRASH_DIR"

// TestMain turns this binary into the process that is to be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		appendUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// appendUntilKilled appends, and now and then truncates, and says after each sync how far the log goes.
func appendUntilKilled(dir string) {
	s, err := openForCrash(dir)
	for last := uint64(0); err == nil; {
		if last == 0 {
			last, err = s.LastIndex()
		}
		n := 1 + rand.Uint64N(20)
		if err == nil {
			err = s.StoreLogs(entries(last+1, last+n, 1))
		}
		last += n
		if err == nil && last%7 == 0 {
			err = s.DeleteRange(0, last-min(last, 50))
		}
		fmt.Println(last)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(3)
}

// What was acknowledged before kill -9 is there afterwards, whole.
func TestKilledWhileAppending(t *testing.T) {
	rounds := 6
	if os.Getenv("MAYFLY_TEST_LONG") != "" {
		rounds = 100
	}
	dir := t.TempDir()
	for round := range rounds {
		acknowledged := crash(t, dir, time.Duration(20+rand.IntN(150))*time.Millisecond)
		s := open(t, filepath.Join(dir, "log.db"))
		first, _ := s.FirstIndex()
		last, _ := s.LastIndex()
		if last < acknowledged {
			t.Fatalf("round %d: entry %d was acknowledged, the log ends at %d", round, acknowledged, last)
		}
		wantLog(t, s, first, last, constant(1))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// crash runs the child for a while, kills it and answers the last entry that it acknowledged.
func crash(t *testing.T, dir string, life time.Duration) uint64 {
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
	lines := bufio.NewScanner(out)
	acknowledged := uint64(0)
	var kill *time.Timer
	for lines.Scan() {
		if kill == nil {
			kill = time.AfterFunc(life, func() { child.Process.Kill() })
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(lines.Text()), 10, 64); err == nil {
			acknowledged = n
		}
	}
	child.Wait()
	if acknowledged == 0 {
		t.Fatal("the child acknowledged nothing")
	}
	return acknowledged
}

func openForCrash(dir string) (*logstore.Store, error) {
	return logstore.Open(filepath.Join(dir, "log.db"))
}
