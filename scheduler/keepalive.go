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

// MakeRoom chooses the least valuable idle sandboxes that free at least need bytes together. It answers false, and no
// ids, if all of them are too few. Least valuable is the one unused for longest, where each second of its start
// counts as thirty seconds of use; none is chosen that the others make needless.
func MakeRoom(idle []Idle, need int64) ([]string, bool) {
	if need <= 0 {
		return nil, true
	}
	var all int64
	for i := range idle {
		all += idle[i].MemoryBytes
	}
	if all < need {
		return nil, false
	}
	order := slices.Clone(idle)
	slices.SortFunc(order, func(a, b Idle) int {
		if c := worth(&a).Compare(worth(&b)); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return ids(prune(take(order, need), need)), true
}

func worth(i *Idle) time.Time { return i.LastUsed.Add(initWorth * i.Init) }

func take(order []Idle, need int64) []Idle {
	var got int64
	for n := range order {
		if got += order[n].MemoryBytes; got >= need {
			return order[:n+1]
		}
	}
	return order
}

// prune drops, from the most valuable on, what isn't needed once larger ones are taken.
func prune(chosen []Idle, need int64) []Idle {
	spare := -need
	for i := range chosen {
		spare += chosen[i].MemoryBytes
	}
	var kept []Idle
	for _, idle := range slices.Backward(chosen) {
		if idle.MemoryBytes <= spare {
			spare -= idle.MemoryBytes
			continue
		}
		kept = append(kept, idle)
	}
	slices.Reverse(kept)
	return kept
}

func ids(chosen []Idle) []string {
	out := make([]string, len(chosen))
	for i := range chosen {
		out[i] = chosen[i].ID
	}
	return out
}
