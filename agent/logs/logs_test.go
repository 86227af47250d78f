package logs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

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
