package agent

import (
	"sync"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// room counts what sandboxes have been promised: the last word on whether another one fits.
type room struct {
	mu       sync.Mutex
	capacity *mayflyv1.NodeResources
	memory   int64
	cpus     int32
}

func newRoom(capacity *mayflyv1.NodeResources) *room { return &room{capacity: capacity} }

// take promises resources, or answers NO_CAPACITY.
func (r *room) take(memory int64, milliCPUs int32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.memory+memory > r.capacity.GetMemoryBytes() {
		return fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY,
			"the node has no room for a sandbox of %d MB: %d of %d MB are taken", memory>>20, r.memory>>20, r.capacity.GetMemoryBytes()>>20)
	}
	if r.cpus+milliCPUs > r.capacity.GetMilliCpus() {
		return fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_NO_CAPACITY,
			"the node has no room for a sandbox of %d mCPU: %d of %d are taken", milliCPUs, r.cpus, r.capacity.GetMilliCpus())
	}
	r.memory += memory
	r.cpus += milliCPUs
	return nil
}

func (r *room) give(memory int64, milliCPUs int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.memory -= memory
	r.cpus -= milliCPUs
}

func (r *room) used() *mayflyv1.NodeResources {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &mayflyv1.NodeResources{MemoryBytes: r.memory, MilliCpus: r.cpus}
}
