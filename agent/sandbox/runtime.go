// Package sandbox is the life cycle of sandboxes: a state machine that is pure, and the Runtime that it drives.
//
// What belongs here: states and transitions, the pool, the Runtime interface; its conformance suite and its fake are in
// runtimetest. What does not: containerd, sockets, files, clocks (agent/containerd, agent).
package sandbox

import (
	"context"
	"time"
)

// Runtime is what the life cycle needs of a container runtime. Its methods may be called concurrently; for one id
// Wait and Usage overlap each other and anything else after Create, and Destroy may overlap any call. Implementations:
// agent/containerd and runtimetest.Fake.
type Runtime interface {
	// Create makes and starts a sandbox and returns once its PID 1 runs. A failed Create leaves nothing behind.
	Create(ctx context.Context, c Config) error
	// PlaceCode makes codeDir appear read-only at /var/task of a generic sandbox.
	PlaceCode(ctx context.Context, id, codeDir string) error
	// Wait returns when PID 1 has exited.
	Wait(ctx context.Context, id string) (Exit, error)
	// Usage reads what the sandbox uses now.
	Usage(ctx context.Context, id string) (Usage, error)
	// Destroy kills everything in the sandbox and removes every trace of it. Unknown ids are no error.
	Destroy(ctx context.Context, id string) error
	// List returns the ids of all sandboxes of this agent, also of earlier processes of it.
	List(ctx context.Context) ([]string, error)
}

// Config is a sandbox to be made.
type Config struct {
	// ID is unique on the node: a UUID.
	ID string
	// RootFS is the directory of an unpacked runtime image; the sandbox sees it read-only.
	RootFS string
	// Command is what the helper (PID 1) runs, with paths inside the sandbox.
	Command []string
	// Env is the environment of Command: nothing of the agent's.
	Env []string
	// CodeDir appears read-only at /var/task; empty for a generic sandbox.
	CodeDir string
	// SocketDir is the host directory that appears at /run/mayfly: agent.sock and log are in it.
	SocketDir string
	// SecretFiles appear read-only at /run/secrets, by name, for the sandbox's user alone. They are kept in memory and
	// go with the sandbox.
	SecretFiles map[string][]byte
	// MemoryBytes, MilliCPUs and PIDs limit the sandbox.
	MemoryBytes int64
	MilliCPUs   int32
	PIDs        int64
	// TmpBytes is the size of /tmp.
	TmpBytes int64
	// Egress is in force before Command runs. Create fails where it can't be given; EgressNone always can.
	Egress Egress
}

// Egress is a policy: what a sandbox may reach. Nobody may reach a sandbox.
type Egress string

// The policies.
const (
	// EgressNone is nothing but the sandbox's own loopback.
	EgressNone Egress = "none"
	// EgressInternet is public addresses and DNS: not the node, no private network, no other sandbox.
	EgressInternet Egress = "internet"
	// EgressAll is whatever the node reaches, and the node itself, but no other sandbox.
	EgressAll Egress = "all"
)

// ExitUnknown is the Code of an Exit that nobody saw.
const ExitUnknown = -1

// Exit is how a sandbox's PID 1 ended.
type Exit struct {
	// Code is the exit status; 128 + signal for a signal.
	Code int
	// OOMKilled tells that the kernel killed a process of it for its memory limit.
	OOMKilled bool
	Time      time.Time
}

// Usage is what a sandbox uses.
type Usage struct {
	MemoryBytes     int64
	PeakMemoryBytes int64
	CPU             time.Duration
}
