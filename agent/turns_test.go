package agent

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// loaded makes turns on a machine whose CPUs idle for that share of the time. It runs in a bubble.
func loaded(limit int, share float64) *turns {
	start := time.Now()
	t := &turns{limit: limit, idle: func() (float64, float64, error) {
		up := time.Since(start).Seconds() + 1000
		return up, up * share, nil
	}}
	t.enter() // looks at the load
	t.leave()
	time.Sleep(loadWindow)
	return t
}

func (t *turns) now() (running, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running, len(t.waiting)
}

func TestTurnsAreTakenWhileCPUsAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := loaded(2, 0.1)
		var ran atomic.Int32
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				ts.enter()
				ran.Add(1)
				time.Sleep(time.Millisecond)
				ts.leave()
			})
			synctest.Wait()
		}
		if running, waiting := ts.now(); running != 2 || waiting != 2 {
			t.Errorf("%d run, %d wait", running, waiting)
		}
		all.Wait()
		if running, waiting := ts.now(); running != 0 || waiting != 0 || ran.Load() != 4 {
			t.Errorf("at the end %d run, %d wait, %d ran", running, waiting, ran.Load())
		}
	})
}

func TestNobodyWaitsWhileCPUsIdle(t *testing.T) {
	for name, ts := range map[string]func() *turns{
		"idle": func() *turns { return loaded(1, 0.5) },
		"unknown": func() *turns {
			return &turns{limit: 1, idle: func() (float64, float64, error) { return 0, 0, errors.New("no /proc") }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ts := ts()
				start := time.Now()
				for range 10 {
					ts.enter()
				}
				if time.Since(start) != 0 {
					t.Errorf("waited %v", time.Since(start))
				}
				for range 10 {
					ts.leave()
				}
				if running, _ := ts.now(); running != 0 {
					t.Errorf("%d run at the end", running)
				}
			})
		})
	}
}

func TestNobodyWaitsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := loaded(1, 0)
		ts.enter() // and blocks
		start := time.Now()
		ts.enter()
		if got := time.Since(start); got != turnWait {
			t.Errorf("waited %v, want %v", got, turnWait)
		}
		ts.leave()
		ts.leave()
		if running, waiting := ts.now(); running != 0 || waiting != 0 {
			t.Errorf("%d run, %d wait", running, waiting)
		}
	})
}

func TestQuickIsWhoeverWasQuickOfLate(t *testing.T) {
	g := &group{}
	if g.quick(time.Hour) {
		t.Error("an unknown function is quick")
	}
	g.took(100 * time.Microsecond)
	for range 10 {
		g.took(5 * time.Millisecond) // waited for a CPU
	}
	if !g.quick(time.Millisecond) {
		t.Error("others made a quick function slow")
	}
	for range 10_000 {
		g.took(5 * time.Millisecond)
	}
	if g.quick(time.Millisecond) || !g.quick(6*time.Millisecond) {
		t.Errorf("a function of 5 ms counts as one of %v", time.Duration(g.quickest.Load()))
	}
}

func TestTheMachineTellsHowIdleItIs(t *testing.T) {
	up, idle, err := readIdle()
	if err != nil || up <= 0 || idle < 0 || idle > up {
		t.Errorf("up %v, idle %v, %v", up, idle, err)
	}
}
