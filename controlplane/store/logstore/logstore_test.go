package logstore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/mayfly-faas/mayfly/controlplane/store/logstore"
)

var (
	_ raft.LogStore               = (*logstore.Store)(nil)
	_ raft.StableStore            = (*logstore.Store)(nil)
	_ raft.CommitTrackingLogStore = (*logstore.Store)(nil)
)

func open(t testing.TB, path string) *logstore.Store {
	t.Helper()
	s, err := logstore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func entry(index, term uint64) *raft.Log {
	return &raft.Log{
		Index: index, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "data %d.%d", term, index),
		Extensions: []byte("ext"), AppendedAt: time.Unix(int64(index), 5),
	}
}

func entries(from, to, term uint64) []*raft.Log {
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, entry(i, term))
	}
	return logs
}

func store(t testing.TB, s *logstore.Store, logs []*raft.Log) {
	t.Helper()
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

// wantLog checks bounds and every entry between them: term by index.
func wantLog(t testing.TB, s *logstore.Store, first, last uint64, term func(uint64) uint64) {
	t.Helper()
	f, err1 := s.FirstIndex()
	l, err2 := s.LastIndex()
	if err1 != nil || err2 != nil || f != first || l != last {
		t.Fatalf("log is %d..%d (%v, %v), want %d..%d", f, l, err1, err2, first, last)
	}
	for i := first; i <= last && i > 0; i++ {
		var got raft.Log
		if err := s.GetLog(i, &got); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		want := entry(i, term(i))
		if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) ||
			!bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
			t.Fatalf("entry %d is %+v, want %+v", i, got, want)
		}
	}
	var none raft.Log
	for _, i := range []uint64{first - 1, last + 1} {
		if err := s.GetLog(i, &none); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("entry %d outside the log: %v, want ErrLogNotFound", i, err)
		}
	}
}

func constant(term uint64) func(uint64) uint64 { return func(uint64) uint64 { return term } }

func TestConformance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s := open(t, path)
	reopen := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, path)
	}
	defer func() { s.Close() }()
	wantLog(t, s, 0, 0, constant(0))

	store(t, s, entries(1, 100, 1))
	wantLog(t, s, 1, 100, constant(1))
	reopen()
	wantLog(t, s, 1, 100, constant(1))

	// Compaction takes a prefix.
	if err := s.DeleteRange(1, 40); err != nil {
		t.Fatal(err)
	}
	wantLog(t, s, 41, 100, constant(1))

	// A new leader's log takes a suffix's place, also across a reopen between the two.
	if err := s.DeleteRange(71, 100); err != nil {
		t.Fatal(err)
	}
	wantLog(t, s, 41, 70, constant(1))
	reopen()
	wantLog(t, s, 41, 70, constant(1))
	store(t, s, entries(71, 90, 2))
	mixed := func(i uint64) uint64 { return 1 + min(i/71, 1) }
	wantLog(t, s, 41, 90, mixed)
	reopen()
	wantLog(t, s, 41, 90, mixed)

	// Entries may be written over, and a range may be larger than the log.
	store(t, s, []*raft.Log{entry(90, 3)})
	if err := s.DeleteRange(0, 89); err != nil {
		t.Fatal(err)
	}
	wantLog(t, s, 90, 90, constant(3))
	if err := s.DeleteRange(1, 1000); err != nil {
		t.Fatal(err)
	}
	wantLog(t, s, 0, 0, constant(0))
	reopen()
	wantLog(t, s, 0, 0, constant(0))

	// After an installed snapshot the log goes on behind a gap.
	store(t, s, entries(1000, 1001, 4))
	wantLog(t, s, 1000, 1001, constant(4))
}

func TestZeroValues(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "log.db"))
	defer s.Close()
	if err := s.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogNoop}); err != nil {
		t.Fatal(err)
	}
	var got raft.Log
	if err := s.GetLog(1, &got); err != nil || got.Type != raft.LogNoop || len(got.Data) != 0 || !got.AppendedAt.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := s.StoreLogs(nil); err != nil {
		t.Fatal(err)
	}
}

func TestStable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s := open(t, path)
	if v, err := s.Get([]byte("none")); err != nil || len(v) != 0 {
		t.Fatalf("%q, %v", v, err)
	}
	if v, err := s.GetUint64([]byte("none")); err != nil || v != 0 {
		t.Fatalf("%d, %v", v, err)
	}
	if err := errors.Join(s.Set([]byte("k"), []byte("v")), s.SetUint64([]byte("n"), 1<<40)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path)
	defer s.Close()
	if v, err := s.Get([]byte("k")); err != nil || string(v) != "v" {
		t.Fatalf("%q, %v", v, err)
	}
	if v, err := s.GetUint64([]byte("n")); err != nil || v != 1<<40 {
		t.Fatalf("%d, %v", v, err)
	}
	if _, err := s.GetUint64([]byte("k")); err == nil {
		t.Fatal("a value that is no number was read as one")
	}
}

func TestCommitIndexGoesWithEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s := open(t, path)
	want := func(index uint64) {
		t.Helper()
		if got, err := s.GetCommitIndex(); err != nil || got != index {
			t.Fatalf("commit index %d, %v, want %d", got, err, index)
		}
	}
	want(0)
	store(t, s, entries(1, 10, 1))
	if err := s.StageCommitIndex(7); err != nil {
		t.Fatal(err)
	}
	want(0)
	s.Close()
	s = open(t, path)
	want(0)
	_ = s.StageCommitIndex(8)
	_ = s.StageCommitIndex(3)
	store(t, s, entries(11, 11, 1))
	want(8)
	_ = s.StageCommitIndex(50)
	store(t, s, entries(12, 12, 1))
	want(12)
	s.Close()
	s = open(t, path)
	defer s.Close()
	want(12)
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s := open(t, path)
	defer s.Close()
	if other, err := logstore.Open(path); err == nil {
		other.Close()
		t.Fatal("the log was opened twice")
	}
}

// A flipped bit in an entry is an error, never another entry.
func TestCorruptEntry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s := open(t, path)
	store(t, s, entries(1, 3, 1))
	s.Close()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range bytes.Count(raw, []byte("data 1.2")) {
		i := 0
		for range at + 1 {
			i += bytes.Index(raw[i:], []byte("data 1.2")) + 1
		}
		raw[i] ^= 4
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	defer s.Close()
	var l raft.Log
	if err := s.GetLog(2, &l); !errors.Is(err, logstore.ErrCorrupt) {
		t.Fatalf("entry %+v, %v, want ErrCorrupt", l, err)
	}
	if err := s.GetLog(3, &l); err != nil {
		t.Fatal(err)
	}
}

// A write that was cut off before its last page, as by a power failure, leaves the log as it was before that write.
func TestTornWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s := open(t, path)
	store(t, s, entries(1, 3, 1))
	store(t, s, entries(4, 4, 1))
	s.Close()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Of the two first pages the one with the higher transaction id was written last.
	page := os.Getpagesize()
	const txid = 16 + 48
	if binary.LittleEndian.Uint64(raw[page+txid:]) > binary.LittleEndian.Uint64(raw[txid:]) {
		clear(raw[page+40 : page+72])
	} else {
		clear(raw[40:72])
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	defer s.Close()
	wantLog(t, s, 1, 3, constant(1))
	store(t, s, entries(4, 6, 2))
	wantLog(t, s, 1, 6, func(i uint64) uint64 { return 1 + min(i/4, 1) })
}

// Any sequence of appends, truncations and reopenings gives what a map gives.
func TestModel(t *testing.T) {
	n := 0
	dir := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		s := open(t, path)
		defer func() { s.Close() }()
		first, terms := uint64(1), []uint64{}
		r.Repeat(map[string]func(*rapid.T){
			"append": func(r *rapid.T) {
				term, from := rapid.Uint64Range(1, 9).Draw(r, "term"), first+uint64(len(terms))
				count := rapid.Uint64Range(1, 30).Draw(r, "count")
				store(t, s, entries(from, from+count-1, term))
				for range count {
					terms = append(terms, term)
				}
			},
			"truncate prefix": func(r *rapid.T) {
				k := rapid.IntRange(0, len(terms)).Draw(r, "entries")
				if err := s.DeleteRange(first, first+uint64(k)-1); err != nil {
					r.Fatal(err)
				}
				first, terms = first+uint64(k), terms[k:]
			},
			"truncate suffix": func(r *rapid.T) {
				k := rapid.IntRange(0, len(terms)).Draw(r, "entries")
				end := first + uint64(len(terms))
				if err := s.DeleteRange(end-uint64(k), end-1); err != nil {
					r.Fatal(err)
				}
				terms = terms[:len(terms)-k]
			},
			"reopen": func(*rapid.T) {
				s.Close()
				s = open(t, path)
			},
			"": func(*rapid.T) {
				if len(terms) == 0 {
					wantLog(t, s, 0, 0, constant(0))
					return
				}
				wantLog(t, s, first, first+uint64(len(terms))-1, func(i uint64) uint64 { return terms[i-first] })
			},
		})
	})
}

func BenchmarkStoreLogs(b *testing.B) {
	for _, batch := range []uint64{1, 64} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "log.db"))
			defer s.Close()
			next := uint64(1)
			for b.Loop() {
				store(b, s, entries(next, next+batch-1, 1))
				next += batch
			}
		})
	}
}
