// Package scheduler decides: where a sandbox is placed, how many are started, which idle ones are removed.
//
// What belongs here: pure functions of a snapshot and a time, their types and their measures. What does not: clocks,
// I/O, locks, goroutines, and whatever carries a decision out (controlplane/fleet). It imports nothing of Mayfly, so
// that decisions can be simulated, fuzzed and replayed.
package scheduler

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// Snapshot is the fleet at one moment. Functions of this package only read it.
type Snapshot struct {
	Now   time.Time
	Nodes []*Node
}

// Node is one agent as the scheduler sees it. Memory is in bytes and counts every sandbox that lives, starts or is being
// destroyed at its full limit; CPU is in thousandths, likewise. An agent that overcommits its CPU says so by its capacity.
type Node struct {
	ID   string
	Name string
	// Up is false while no session with the agent is open.
	Up                               bool
	MemoryBytes, UsedMemoryBytes     int64
	MilliCPUs, UsedMilliCPUs         int64
	Starting, MaxStarting, Sandboxes int
	// NotBefore is the end of a pause after the agent failed to start a sandbox; zero: none.
	NotBefore time.Time
	// NoEgress tells that its sandboxes can reach nothing.
	NoEgress bool
	// Runtimes are those it has images of.
	Runtimes []string
	// Code counts, by digest, the sandboxes that were started with it since the session began.
	Code map[string]int
	// Functions counts live sandboxes by function.
	Functions map[Function]int
	// Idle are the sandboxes that may be removed to make room.
	Idle []Idle
}

// Function names a function in its namespace.
type Function struct {
	Namespace, Name string
}

// Idle is a sandbox that runs nothing now and is leased to nobody.
type Idle struct {
	ID          string
	Function    Function
	Version     string
	MemoryBytes int64
	MilliCPUs   int64
	LastUsed    time.Time
	// Init is how long its start took: what is lost with it.
	Init time.Duration
}

// Request asks for a place for one sandbox.
type Request struct {
	Function    Function
	Runtime     string
	CodeDigest  string
	MemoryBytes int64
	MilliCPUs   int64
	// Egress tells that the sandbox may reach something.
	Egress bool
}

// Plan is where a sandbox goes, and the idle sandboxes that must be destroyed there first.
type Plan struct {
	Node  *Node
	Evict []string
}

// Why a node was refused.
type Why int

// Reasons, from the lasting to the passing.
const (
	WhyDown Why = iota
	WhyNoRuntime
	WhyNoEgress
	WhyTooSmall
	WhyPaused
	WhyStarting
	WhyMemory
	WhyCPU
)

// String says it for people.
func (w Why) String() string {
	return [...]string{
		"not connected", "no image of the runtime", "no network for sandboxes", "smaller than the function needs",
		"failed or refused a start moments ago", "busy starting sandboxes", "memory in use", "CPU in use",
	}[w]
}

// Refusals counts the refused nodes by reason.
type Refusals map[Why]int

// Passing tells whether waiting can help: some node would do, were it not for its load, or no node is there at all.
func (r Refusals) Passing() bool {
	up := false
	for why, n := range r {
		if n > 0 && why > WhyTooSmall {
			return true
		}
		up = up || (n > 0 && why != WhyDown)
	}
	return !up
}

// Crowded tells whether some node would do if fewer sandboxes lived there.
func (r Refusals) Crowded() bool { return r[WhyMemory]+r[WhyCPU] > 0 }

// String lists them, such as "2 nodes: memory in use; 1 node: not connected".
func (r Refusals) String() string {
	if len(r) == 0 {
		return "no node is connected"
	}
	whys := make([]int, 0, len(r))
	for why := range r {
		whys = append(whys, int(why))
	}
	sort.Ints(whys)
	parts := make([]string, 0, len(whys))
	for _, why := range whys {
		noun := "nodes"
		if r[Why(why)] == 1 {
			noun = "node"
		}
		parts = append(parts, fmt.Sprintf("%d %s: %s", r[Why(why)], noun, Why(why)))
	}
	return strings.Join(parts, "; ")
}
