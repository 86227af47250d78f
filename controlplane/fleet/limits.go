package fleet

import (
	"time"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/scheduler"
)

const (
	// defaultConcurrency is the quota of a namespace that names none.
	defaultConcurrency = 1000
	// reservationsAge is how long the sum of a namespace's reservations is used after it may have changed: counting it
	// reads all functions of the namespace. A function's own reservation is always read anew.
	reservationsAge = 100 * time.Millisecond
)

// limits counts leases, those being started included, by function and namespace. Fleet.mu guards it.
type limits struct {
	functions    map[scheduler.Function]int
	namespaces   map[string]int
	reservations map[string]*reservations
}

// reservations are what the functions of a namespace reserve. Once made they aren't changed.
type reservations struct {
	sum       int
	functions map[scheduler.Function]struct{}
	changed   <-chan struct{}
	at        time.Time
}

func newLimits() limits {
	return limits{
		functions: map[scheduler.Function]int{}, namespaces: map[string]int{}, reservations: map[string]*reservations{},
	}
}

// take counts one more lease of fn, or answers the throttle error and what may be recalled to avoid it.
func (l *limits) take(view View, fn *mayflyv1.Function) (func(namespace, function string) bool, error) {
	key := scheduler.Function{Namespace: fn.GetNamespace(), Name: fn.GetName()}
	if fn.ReservedConcurrency != nil {
		if limit := int(fn.GetReservedConcurrency()); l.functions[key] >= limit {
			return func(ns, name string) bool { return ns == key.Namespace && name == key.Name }, functionThrottled(key, limit)
		}
	} else if match, err := l.takeUnreserved(view, key); err != nil {
		return match, err
	}
	l.functions[key]++
	l.namespaces[key.Namespace]++
	return nil, nil
}

func (l *limits) takeUnreserved(view View, key scheduler.Function) (func(namespace, function string) bool, error) {
	r := l.reservationsOf(view, key.Namespace)
	quota := scheduler.Quota{Limit: quotaOf(view, key.Namespace), Reserved: r.sum, UnreservedLeased: l.unreserved(key.Namespace, r)}
	if quota.Free() > 0 {
		return nil, nil
	}
	match := func(ns, name string) bool {
		_, reserved := r.functions[scheduler.Function{Namespace: ns, Name: name}]
		return ns == key.Namespace && !reserved
	}
	return match, namespaceThrottled(key.Namespace, quota)
}

func (l *limits) unreserved(namespace string, r *reservations) int {
	n := l.namespaces[namespace]
	for fn := range r.functions {
		n -= l.functions[fn]
	}
	return n
}

func quotaOf(view View, namespace string) int {
	ns, ok := view.Namespace(namespace)
	if !ok || ns.GetQuotas().GetConcurrency() <= 0 {
		return defaultConcurrency
	}
	return int(ns.GetQuotas().GetConcurrency())
}

func (l *limits) reservationsOf(view View, namespace string) *reservations {
	if r := l.reservations[namespace]; r != nil && (!isClosed(r.changed) || time.Since(r.at) < reservationsAge) {
		return r
	}
	r := &reservations{functions: map[scheduler.Function]struct{}{}, changed: view.Changed(), at: time.Now()}
	for fn := range view.Functions(namespace, "") {
		if fn.ReservedConcurrency != nil {
			r.sum += int(fn.GetReservedConcurrency())
			r.functions[scheduler.Function{Namespace: namespace, Name: fn.GetName()}] = struct{}{}
		}
	}
	l.reservations[namespace] = r
	return r
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// give counts one lease less.
func (l *limits) give(key scheduler.Function) {
	if l.functions[key]--; l.functions[key] <= 0 {
		delete(l.functions, key)
	}
	if l.namespaces[key.Namespace]--; l.namespaces[key.Namespace] <= 0 {
		delete(l.namespaces, key.Namespace)
	}
}

// Messages begin as AWS's do.

func functionThrottled(key scheduler.Function, limit int) error {
	return fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_CONCURRENCY_EXCEEDED,
		"Rate Exceeded. Function %q in namespace %q runs %d invocations at once already, its reserved concurrency: retry later or reserve more",
		key.Name, key.Namespace, limit)
}

func namespaceThrottled(namespace string, q scheduler.Quota) error {
	return fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_CONCURRENCY_EXCEEDED,
		"Rate Exceeded. Namespace %q runs %d invocations at once already (concurrency %d, of which functions reserve %d): retry later or raise its quota",
		namespace, q.UnreservedLeased, q.Limit, q.Reserved)
}
