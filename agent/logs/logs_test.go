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
	"unicode/utf8"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stream(t testing.TB, s *Store, fn string) *Stream {
	t.Helper()
	st, err := s.Stream("default", fn, "2026/01/02/[$LATEST]abc", "$LATEST")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

func read(t testing.TB, s *Store, q *mayflyv1.ReadLogsRequest) []*mayflyv1.LogLine {
	t.Helper()
	if q.Namespace == "" {
		q.Namespace = "default"
	}
	if q.Function == "" {
		q.Function = "f"
	}
	var all []*mayflyv1.LogLine
	err := s.Read(t.Context(), q, func(r *mayflyv1.ReadLogsResponse) error {
		all = append(all, r.GetLines()...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func texts(lines []*mayflyv1.LogLine) []string {
	var all []string
	for _, l := range lines {
		all = append(all, l.GetText())
	}
	return all
}

func invoke(st *Stream, id string, lines ...string) []byte {
	st.Begin(id, true)
	for _, l := range lines {
		_, _ = st.Write([]byte(l + "\n"))
	}
	return st.End(Report{Duration: 1230 * time.Microsecond, MemoryMB: 128, MaxMemoryMB: 31})
}

func TestLinesOfAnInvocation(t *testing.T) {
	s := open(t, Config{})
	st := stream(t, s, "f")
	tail := invoke(st, "id-1", "hello", "world")
	want := []string{
		"START RequestId: id-1 Version: $LATEST", "hello", "world", "END RequestId: id-1",
		"REPORT RequestId: id-1\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 31 MB\t",
	}
	for _, flushed := range []bool{false, true} {
		if flushed {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		lines := read(t, s, &mayflyv1.ReadLogsRequest{})
		if !slices.Equal(texts(lines), want) {
			t.Fatalf("flushed %v: %q", flushed, texts(lines))
		}
		if l := lines[1]; l.GetRequestId() != "id-1" || l.GetVersion() != "$LATEST" || l.GetKind() != mayflyv1.LogKind_LOG_KIND_FUNCTION || l.GetLogStream() == "" {
			t.Fatalf("line: %v", l)
		}
		if lines[0].GetKind() != mayflyv1.LogKind_LOG_KIND_PLATFORM {
			t.Fatal("START is no line of the platform")
		}
	}
	if got := strings.Split(strings.TrimSuffix(string(tail), "\n"), "\n"); !slices.Equal(got, want) {
		t.Fatalf("tail: %q", got)
	}
}

func TestReportText(t *testing.T) {
	r := Report{Duration: time.Second, Init: 110100 * time.Microsecond, MemoryMB: 128, MaxMemoryMB: 128, Status: "error", ErrorType: "Runtime.OutOfMemory"}
	got, err := parseReport(appendReport(nil, r))
	if err != nil || got != r {
		t.Fatalf("%+v, %v", got, err)
	}
	want := "REPORT RequestId: x\tDuration: 1000.00 ms\tBilled Duration: 1000 ms\tMemory Size: 128 MB\tMax Memory Used: 128 MB\t" +
		"Init Duration: 110.10 ms\tStatus: error\tError Type: Runtime.OutOfMemory\t"
	if got.text("x") != want {
		t.Fatal(got.text("x"))
	}
}

func TestLongAndOddLines(t *testing.T) {
	s := open(t, Config{})
	st := stream(t, s, "f")
	long := strings.Repeat("é", maxLine) // two bytes each
	st.Begin("a", false)
	_, _ = st.Write([]byte("x" + long + "\nbad \xff\xfe byte\r\n\nno end"))
	st.End(Report{})
	lines := texts(read(t, s, &mayflyv1.ReadLogsRequest{}))
	lines = lines[1 : len(lines)-2]
	var joined string
	for len(lines) > 3 {
		if len(lines[0]) > maxLine || !utf8.ValidString(lines[0]) || strings.Contains(lines[0], "\uFFFD") {
			t.Fatalf("a part of %d bytes, cut in a character?", len(lines[0]))
		}
		joined += lines[0]
		lines = lines[1:]
	}
	if joined != "x"+long {
		t.Fatal("the parts of a long line don't make up the line")
	}
	if want := []string{"bad \uFFFD byte", "", "no end"}; !slices.Equal(lines, want) {
		t.Fatalf("%q", lines)
	}
}

func TestTailIsTheLast4KiB(t *testing.T) {
	s := open(t, Config{})
	st := stream(t, s, "f")
	var lines []string
	for i := range 3000 {
		lines = append(lines, fmt.Sprintf("line %d", i))
	}
	tail := string(invoke(st, "a", lines...))
	if len(tail) > tailBytes || len(tail) < tailBytes-100 || !strings.Contains(tail, "line 2999\nEND RequestId: a\nREPORT") {
		t.Fatalf("%d bytes: …%s", len(tail), tail[max(0, len(tail)-200):])
	}
	st.Begin("b", false)
	if st.End(Report{}) != nil {
		t.Fatal("a tail that nobody asked for")
	}
}

func TestFloodIsCut(t *testing.T) {
	s := open(t, Config{InvocationBytes: 100})
	st := stream(t, s, "f")
	for _, id := range []string{"a", "b"} {
		st.Begin(id, false)
		for range 1000 {
			_, _ = st.Write([]byte("123456789\n"))
		}
		st.End(Report{})
		got := texts(read(t, s, &mayflyv1.ReadLogsRequest{RequestId: id}))
		if len(got) != 14 || !strings.Contains(got[11], "cut here") {
			t.Fatalf("%d lines: %q", len(got), got)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	s := open(t, Config{PendingBytes: 1000})
	st := stream(t, s, "f")
	for range 1000 {
		_, _ = st.Write([]byte("0123456789\n"))
	}
	if n := s.pending.Load(); n > 1100 {
		t.Fatalf("%d bytes in memory", n)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := s.pending.Load(); n != 0 {
		t.Fatalf("%d bytes counted after the flush", n)
	}
	_, _ = st.Write([]byte("after\n"))
	got := texts(read(t, s, &mayflyv1.ReadLogsRequest{}))
	if n := len(got); got[n-1] != "after" || !strings.Contains(got[n-2], "lines were dropped") {
		t.Fatalf("%q", got[n-2:])
	}
}

func TestAbort(t *testing.T) {
	s := open(t, Config{})
	st := stream(t, s, "f")
	st.Begin("a", false)
	st.Abort()
	if n := s.pending.Load(); n != 0 {
		t.Fatalf("%d bytes counted", n)
	}
	invoke(st, "b")
	if got := texts(read(t, s, &mayflyv1.ReadLogsRequest{})); len(got) != 3 {
		t.Fatalf("%q", got)
	}
}

func TestPipe(t *testing.T) {
	s := open(t, Config{})
	st := stream(t, s, "f")
	path := filepath.Join(t.TempDir(), "log")
	if err := st.OpenPipe(path); err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 200 {
		id := fmt.Sprint("id", i)
		st.Begin(id, true)
		for j := range i {
			fmt.Fprintf(w, "line %d of %s\n", j, id)
		}
		if i == 150 {
			fmt.Fprint(w, strings.Repeat("x", 300<<10), "\n") // more than a pipe holds
		}
		st.End(Report{})
		if got := read(t, s, &mayflyv1.ReadLogsRequest{RequestId: id, Filter: "line"}); len(got) != i {
			t.Fatalf("%d lines of %d at End", len(got), i)
		}
	}
	st.Close()
	if got := read(t, s, &mayflyv1.ReadLogsRequest{Filter: "line"}); len(got) != 199*200/2 {
		t.Fatalf("%d lines", len(got))
	}
}

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

func TestFailedWriteIsRetried(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	st := stream(t, s, "f")
	invoke(st, "a")
	if err := os.WriteFile(filepath.Join(dir, "default"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s.Flush() == nil {
		t.Fatal("no error")
	}
	invoke(st, "b")
	if got := read(t, s, &mayflyv1.ReadLogsRequest{}); len(got) != 6 {
		t.Fatalf("%d lines", len(got))
	}
	_ = os.Remove(filepath.Join(dir, "default"))
	for range 2 {
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, open(t, Config{Dir: dir}), &mayflyv1.ReadLogsRequest{}); len(got) != 6 {
		t.Fatalf("%d lines", len(got))
	}
}

func TestImpossibleNames(t *testing.T) {
	s := open(t, Config{})
	for _, name := range []string{"", ".", "..", "a/b", "/"} {
		if _, err := s.Stream("default", name, "", ""); err == nil {
			t.Errorf("function %q", name)
		}
	}
}

func TestBloom(t *testing.T) {
	b := newBloom(1000)
	for i := range 1000 {
		b.add(hashID(fmt.Sprint("in", i)))
	}
	wrong := 0
	for i := range 1000 {
		if !b.mayHave(hashID(fmt.Sprint("in", i))) {
			t.Fatal("an id is missing")
		}
		if b.mayHave(hashID(fmt.Sprint("out", i))) {
			wrong++
		}
	}
	if wrong > 60 {
		t.Fatalf("%d wrong hits of 1000", wrong)
	}
}

func BenchmarkInvocation(b *testing.B) {
	s := open(b, Config{PendingBytes: 1 << 40})
	st := stream(b, s, "f")
	if err := st.OpenPipe(filepath.Join(b.TempDir(), "log")); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		st.Begin("0b2e2b5e-6f3a-4c51-9c69-1a2b3c4d5e6f", false)
		st.End(Report{Duration: time.Millisecond, MemoryMB: 128, MaxMemoryMB: 30})
	}
}
