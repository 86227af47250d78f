package scheduler

import (
	"slices"
	"strings"
	"time"
)

// initWorth is how much longer a sandbox is worth keeping for each second that its start took.
const initWorth = 30

// Expired returns the ids of the sandboxes that have been idle for keepAlive or longer.
func Expired(idle []Idle, now time.Time, keepAlive time.Duration) []string {
	var ids []string
	for i := range idle {
		if now.Sub(idle[i].LastUsed) >= keepAlive {
			ids = append(ids, idle[i].ID)
		}
	}
	return ids
}

// MakeRoom chooses the least valuable idle sandboxes that free at least so many bytes and thousandths of a CPU
// together. It answers false, and no ids, if all of them are too few. Least valuable is the one unused for longest, where
// each second of its start counts as thirty seconds of use; none is chosen that the others make needless.
func MakeRoom(idle []Idle, memory, cpus int64) ([]string, bool) {
	spare := room{-memory, -cpus}
	if spare.enough() {
		return nil, true
	}
	order := slices.Clone(idle)
	slices.SortFunc(order, func(a, b Idle) int {
		if c := worth(&a).Compare(worth(&b)); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	for n := range order {
		if spare.add(&order[n]); spare.enough() {
			return spare.prune(order[:n+1]), true
		}
	}
	return nil, false
}

// room is how much more than needed is free.
type room struct{ memory, cpus int64 }

func (r *room) add(i *Idle) {
	r.memory += i.MemoryBytes
	r.cpus += i.MilliCPUs
}

func (r *room) enough() bool { return r.memory >= 0 && r.cpus >= 0 }

// prune gives the ids of the chosen but for those, the most valuable first, that needn't go.
func (r *room) prune(chosen []Idle) []string {
	var ids []string
	for _, idle := range slices.Backward(chosen) {
		without := room{r.memory - idle.MemoryBytes, r.cpus - idle.MilliCPUs}
		if without.enough() {
			*r = without
			continue
		}
		ids = append(ids, idle.ID)
	}
	slices.Reverse(ids)
	return ids
}

func worth(i *Idle) time.Time { return i.LastUsed.Add(initWorth * i.Init) }
