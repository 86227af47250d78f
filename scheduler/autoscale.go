package scheduler

// Demand is what a function version needs and has.
type Demand struct {
	// Waiting counts invocations without a sandbox.
	Waiting int
	// Starting counts sandboxes on their way, Idle those that wait for an invocation.
	Starting, Idle int
	// Leased counts all that count against Limit, starting ones included; a negative Limit means none.
	Leased, Limit int
}

// Starts is how many sandboxes to start now: one for each waiting invocation that neither an idle nor a starting one
// covers, within the limit. It never is negative.
func Starts(d Demand) int {
	starts := max(0, d.Waiting-d.Starting-d.Idle)
	if d.Limit >= 0 {
		starts = min(starts, max(0, d.Limit-d.Leased))
	}
	return starts
}

// Quota is the concurrency of a namespace and what its functions hold of it, by Lambda's arithmetic: what functions
// reserve is theirs alone, used or not, and all others share the rest.
type Quota struct {
	// Limit is the namespace's concurrency, Reserved the sum of all reservations in it.
	Limit, Reserved int
	// UnreservedLeased counts the leases of functions without a reservation.
	UnreservedLeased int
}

// Free is how many more leases functions without a reservation may take.
func (q Quota) Free() int {
	return max(0, q.Limit-q.Reserved-q.UnreservedLeased)
}
