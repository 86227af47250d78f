package agent

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// quickBelow is the time from which an invocation takes no turns: it may do other things than compute.
	quickBelow = time.Millisecond
	// turnsPerCPU leaves a CPU something to do while an answer is on its way.
	turnsPerCPU = 2
	// turnWait bounds how long an invocation waits for its turn.
	turnWait = 10 * time.Millisecond
	// CPUs that were idle for less than a quarter of the time are busy. They are looked at every loadWindow at most.
	busyIdleShare = 0.25
	loadWindow    = 100 * time.Millisecond
)

// turns lets invocations of quick functions run a few at a time while all CPUs are busy: more would not end sooner, but
// find the caches cold, since each has a process of its own. Who waits gets the sandbox that comes free, still warm.
// Nobody waits longer than turnWait, and nobody waits while CPUs idle.
type turns struct {
	limit int
	// idle reads how long the machine is up, and how long its CPUs were idle for on average, in seconds.
	idle func() (up, idle float64, err error)

	mu      sync.Mutex
	running int
	waiting []chan struct{} // oldest first; each takes one
	looked  time.Time
	up      float64
	idled   float64
	busy    bool
}

func newTurns() *turns {
	return &turns{limit: turnsPerCPU * runtime.NumCPU(), idle: readIdle}
}

// enter waits for a turn. leave must follow.
func (t *turns) enter() {
	t.mu.Lock()
	if t.running < t.limit || !t.busyLocked() {
		t.running++
		t.mu.Unlock()
		return
	}
	turn := make(chan struct{}, 1)
	t.waiting = append(t.waiting, turn)
	t.mu.Unlock()
	limit := time.NewTimer(turnWait)
	defer limit.Stop()
	select {
	case <-turn:
	case <-limit.C:
		t.giveUp(turn)
	}
}

// giveUp takes a turn beyond the limit, unless one has just come.
func (t *turns) giveUp(turn chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting, turn); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		t.running++
	}
}

// leave gives the turn to who waits longest.
func (t *turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 || t.running > t.limit {
		t.running--
		return
	}
	t.waiting[0] <- struct{}{}
	t.waiting = slices.Delete(t.waiting, 0, 1)
}

// busyLocked tells whether CPUs were busy of late.
func (t *turns) busyLocked() bool {
	now := time.Now()
	if now.Sub(t.looked) < loadWindow {
		return t.busy
	}
	t.looked = now
	up, idled, err := t.idle()
	if err != nil || up <= t.up {
		t.busy = false
		return false
	}
	t.busy = (idled-t.idled)/(up-t.up) < busyIdleShare
	t.up, t.idled = up, idled
	return t.busy
}

func readIdle() (up, idle float64, err error) {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, 0, err
	}
	first, second, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if up, err = strconv.ParseFloat(first, 64); err != nil {
		return 0, 0, err
	}
	idle, err = strconv.ParseFloat(second, 64)
	return up, idle / float64(runtime.NumCPU()), err
}
