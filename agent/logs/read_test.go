package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestQueries(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().Add(-time.Hour)
	s := open(t, Config{Dir: dir, Now: func() time.Time { return now }, SegmentBytes: 2000})
	st := stream(t, s, "f")
	var moments []time.Time
	for i := range 100 {
		now = now.Add(time.Second)
		moments = append(moments, now)
		invoke(st, fmt.Sprintf("id-%d", i), fmt.Sprintf("text %d", i))
		if i%3 == 0 && i < 95 {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "default/f/*.log")); len(files) < 3 {
		t.Fatalf("%d segments", len(files))
	}
	check := func(s *Store, n int) {
		t.Helper()
		at := func(i int) *timestamppb.Timestamp { return timestamppb.New(moments[i]) }
		for _, c := range []struct {
			q    *mayflyv1.ReadLogsRequest
			want int
		}{
			{&mayflyv1.ReadLogsRequest{}, n * 4},
			{&mayflyv1.ReadLogsRequest{RequestId: "id-17"}, 4},
			{&mayflyv1.ReadLogsRequest{RequestId: "id-17", Since: at(18)}, 0},
			{&mayflyv1.ReadLogsRequest{RequestId: "no such"}, 0},
			{&mayflyv1.ReadLogsRequest{Since: at(50), Until: at(60)}, 40},
			{&mayflyv1.ReadLogsRequest{Since: at(10), Until: at(10)}, 0},
			{&mayflyv1.ReadLogsRequest{Filter: "text 4"}, 11},
			{&mayflyv1.ReadLogsRequest{Limit: 7}, 7},
			{&mayflyv1.ReadLogsRequest{Limit: 1000}, n * 4},
			{&mayflyv1.ReadLogsRequest{Function: "other"}, 0},
		} {
			lines := read(t, s, c.q)
			if len(lines) != c.want {
				t.Errorf("%v: %d lines, want %d", c.q, len(lines), c.want)
			}
			if !slices.IsSortedFunc(lines, byTime) {
				t.Errorf("%v: not in order", c.q)
			}
		}
		last := read(t, s, &mayflyv1.ReadLogsRequest{Limit: 1})
		if !strings.HasPrefix(last[0].GetText(), fmt.Sprintf("REPORT RequestId: id-%d\t", n-1)) {
			t.Errorf("newest line: %s", last[0].GetText())
		}
	}
	check(s, 100)
	// A process that is killed loses what isn't flushed, the next one reads the rest and goes on after it.
	check(open(t, Config{Dir: dir}), 94)
	// A torn tail.
	files, _ := filepath.Glob(filepath.Join(dir, "default/f/*.log"))
	info, _ := os.Stat(files[len(files)-1])
	if err := os.Truncate(files[len(files)-1], info.Size()-3); err != nil {
		t.Fatal(err)
	}
	torn := open(t, Config{Dir: dir})
	before := len(read(t, torn, &mayflyv1.ReadLogsRequest{}))
	if before >= 94*4 || before < 80*4 {
		t.Fatalf("%d lines after the tail was torn", before)
	}
	invoke(stream(t, torn, "f"), "after")
	if err := torn.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := len(read(t, torn, &mayflyv1.ReadLogsRequest{})); got != before+3 {
		t.Fatalf("%d lines, want %d", got, before+3)
	}
}

func TestDamageIsNoLine(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	invoke(stream(t, s, "f"), "a", "hello")
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "default/f/*.log"))
	good, _ := os.ReadFile(files[0])
	rapid.Check(t, func(rt *rapid.T) {
		bad := slices.Clone(good)
		bad[rapid.IntRange(0, len(bad)-1).Draw(rt, "at")] ^= byte(rapid.IntRange(1, 255).Draw(rt, "bits"))
		if err := os.WriteFile(files[0], bad, 0o600); err != nil {
			rt.Fatal(err)
		}
		for _, l := range read(t, open(t, Config{Dir: dir}), &mayflyv1.ReadLogsRequest{}) {
			rt.Fatalf("a line from a damaged block: %v", l)
		}
	})
}

func TestTimeSetBack(t *testing.T) {
	now := time.Unix(1000, 0)
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Now: func() time.Time { return now }})
	invoke(stream(t, s, "f"), "a")
	_ = s.Flush()
	now = time.Unix(500, 0)
	invoke(stream(t, s, "f"), "b")
	_ = s.Flush()
	s = open(t, Config{Dir: dir, Now: func() time.Time { return now }})
	invoke(stream(t, s, "f"), "c")
	got := texts(read(t, s, &mayflyv1.ReadLogsRequest{Filter: "START"}))
	if len(got) != 3 || !strings.Contains(got[2], ": c ") {
		t.Fatalf("%q", got)
	}
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	s := open(t, Config{Dir: dir, SegmentBytes: 1000, FunctionBytes: 5000, MaxAge: time.Hour, Now: func() time.Time { return now }})
	st := stream(t, s, "f")
	for i := range 100 {
		invoke(st, fmt.Sprintf("id-%d", i), strings.Repeat("x", 200))
		_ = s.Flush()
	}
	var total int64
	files, _ := filepath.Glob(filepath.Join(dir, "default/f/*.log"))
	for _, f := range files {
		info, _ := os.Stat(f)
		total += info.Size()
	}
	if total > 7000 || total < 3000 {
		t.Fatalf("%d bytes kept", total)
	}
	if got := read(t, s, &mayflyv1.ReadLogsRequest{RequestId: "id-99"}); len(got) != 4 {
		t.Fatal("the newest invocation was deleted")
	}
	st.Close()
	_ = s.Flush()
	now = now.Add(2 * time.Hour)
	s.sweep()
	if got := read(t, s, &mayflyv1.ReadLogsRequest{}); len(got) != 0 {
		t.Fatalf("%d lines after their age", len(got))
	}
	if _, err := os.Stat(filepath.Join(dir, "default/f")); err == nil {
		t.Fatal("the directory is left")
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { _ = s.Run(ctx) })
		st := stream(t, s, "f")
		invoke(st, "before")
		var got []string
		readCtx, stop := context.WithCancel(t.Context())
		all.Go(func() {
			err := s.Read(readCtx, &mayflyv1.ReadLogsRequest{Namespace: "default", Function: "f", Follow: true, Filter: "REPORT"},
				func(r *mayflyv1.ReadLogsResponse) error {
					for _, l := range r.GetLines() {
						got = append(got, l.GetRequestId())
					}
					return nil
				})
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		want := []string{"before"}
		for i := range 300 {
			id := fmt.Sprint(i)
			invoke(st, id)
			want = append(want, id)
			time.Sleep(37 * time.Millisecond)
		}
		time.Sleep(time.Second)
		stop()
		cancel()
		all.Wait()
		if !slices.Equal(got, want) {
			t.Fatalf("followed %d of %d: %v", len(got), len(want), got)
		}
	})
}

// Readers see each line once and in order whatever is flushed meanwhile.
func TestConcurrentReaders(t *testing.T) {
	s := open(t, Config{SegmentBytes: 4 << 10})
	const sandboxes, calls = 4, 300
	var writers, others sync.WaitGroup
	stop := make(chan struct{})
	for range sandboxes {
		st := stream(t, s, "f")
		writers.Go(func() {
			for i := range calls {
				invoke(st, fmt.Sprint(i), "x")
			}
		})
	}
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = s.Flush()
			}
		}
	})
	others.Go(func() {
		seen := 0
		for seen < sandboxes*calls*4 {
			lines := read(t, s, &mayflyv1.ReadLogsRequest{})
			if len(lines) < seen || !slices.IsSortedFunc(lines, byTime) {
				t.Errorf("%d lines after %d, or out of order", len(lines), seen)
				return
			}
			seen = len(lines)
		}
	})
	writers.Wait()
	for len(read(t, s, &mayflyv1.ReadLogsRequest{})) < sandboxes*calls*4 && !t.Failed() {
	}
	close(stop)
	others.Wait()
}
