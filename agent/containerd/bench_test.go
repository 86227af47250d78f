package containerd

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// BenchmarkCreate is the time from nothing to a running process 1, one at a time; sandboxes are destroyed off the clock.
func BenchmarkCreate(b *testing.B) {
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		c := usual(b)
		b.StartTimer()
		begin := time.Now()
		if err := shared.runtime.Create(b.Context(), c); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
		b.StopTimer()
		destroyNow(b, c.ID)
		b.StartTimer()
	}
	report(b, took)
}

// BenchmarkCycle8 is whole lives, made and destroyed, eight at a time.
func BenchmarkCycle8(b *testing.B) {
	b.SetParallelism(4) // of two processors: eight
	begin, cpu := time.Now(), cpuUsed(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c := usual(b)
			if err := shared.runtime.Create(b.Context(), c); err != nil {
				b.Error(err)
				return
			}
			destroyNow(b, c.ID)
		}
	})
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "sandboxes/s")
	b.ReportMetric(float64((cpuUsed(b)-cpu).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// cpuUsed is what this process, containerd, its shims and all sandboxes have used: unlike times, other load on the
// machine hardly changes it.
func cpuUsed(b *testing.B) time.Duration {
	b.Helper()
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		b.Fatal(err)
	}
	u, err := shared.runtime.cgroups.usage("")
	if err != nil {
		b.Fatal(err)
	}
	return u.CPU + time.Duration(self.Utime.Nano()+self.Stime.Nano())
}

func destroyNow(b *testing.B, id string) {
	b.Helper()
	if err := shared.runtime.Destroy(context.WithoutCancel(b.Context()), id); err != nil {
		b.Fatal(err)
	}
}

func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// usual has a /tmp of the usual size, which is pooled.
func usual(b *testing.B) sandbox.Config {
	b.Helper()
	c := probe(b, "sleep")
	c.TmpBytes = defaultTmpBytes
	return c
}
