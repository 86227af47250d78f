package state_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const manyFunctions = 100_000

// many is a state on disk with 100,000 functions.
func many(b *testing.B) (*state.State, uint64) {
	b.Helper()
	tbl, err := table.Open(table.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	s, err := state.New(state.Config{Table: tbl})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	log := []state.Entry{{Index: 1, Term: 1, Command: initCluster()}}
	for i := range manyFunctions {
		if i == 0 {
			log = append(log, state.Entry{Index: 2, Term: 1, Command: createNamespace("many", "000000000002", &mayflyv1.Quotas{Functions: 2 * manyFunctions})})
		}
		log = append(log, state.Entry{Index: uint64(i + 3), Term: 1, Command: createFunction("many", fmt.Sprintf("function-%06d", i), i%1000)})
	}
	for chunk := 0; chunk < len(log); chunk += 100 {
		if _, err := s.Apply(log[chunk:min(len(log), chunk+100)]); err != nil {
			b.Fatal(err)
		}
	}
	if u := s.View().Usage("many"); u.Functions != manyFunctions {
		b.Fatalf("usage %+v", u)
	}
	return s, s.AppliedIndex()
}

func BenchmarkMany(b *testing.B) {
	s, index := many(b)
	b.Run("View", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := s.View().Function("many", "function-050000"); !ok {
				b.Fatal("lost")
			}
		}
	})
	b.Run("Page", func(b *testing.B) {
		for b.Loop() {
			n := 0
			for range s.View().Functions("many", "function-070000") {
				if n++; n == 50 {
					break
				}
			}
		}
	})
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprint("Apply/", batch), func(b *testing.B) {
			entries := make([]state.Entry, batch)
			for b.Loop() {
				for i := range entries {
					index++
					c := updateCode(fmt.Sprintf("function-%06d", index%manyFunctions), int(index%1000), 0)
					c.GetUpdateFunctionCode().Namespace = "many"
					c.ProposalId = fmt.Sprintf("00000000-0000-0000-0000-%012d", index)
					entries[i] = state.Entry{Index: index, Term: 1, Command: c}
				}
				if _, err := s.Apply(entries); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "entries/s")
		})
	}
	var buf bytes.Buffer
	b.Run("Snapshot", func(b *testing.B) {
		for b.Loop() {
			buf.Reset()
			write(b, s, &buf)
		}
		b.ReportMetric(float64(buf.Len())/(1<<20), "MiB")
	})
	b.Run("Restore", func(b *testing.B) {
		for b.Loop() {
			if err := s.Restore(bytes.NewReader(buf.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func write(b *testing.B, s *state.State, w io.Writer) {
	b.Helper()
	snap, err := s.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	defer snap.Close()
	if err := snap.Write(w); err != nil {
		b.Fatal(err)
	}
}
