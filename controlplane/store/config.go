package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// MaxEntryBytes bounds one command.
const MaxEntryBytes = 1 << 20

// Config is what a Store needs. Fields without a default named are required.
type Config struct {
	// Dir holds the log, the snapshots and the node's id; it is made if it is missing.
	Dir string
	// NodeID is a UUID. Empty: the one in Dir, made when there is none. Another one than in Dir is an error.
	NodeID string
	// State is not closed by the store.
	State *state.State

	// Listener takes Raft's connections, before TLS. Nil: the store listens on Address. Close closes it.
	Listener net.Listener
	// Address is host:port. It is ignored with a Listener.
	Address string
	// Advertise is the host:port under which other servers reach this one; empty: the listener's address.
	Advertise string
	TLS       TLS
	// Dial opens connections to other servers, before TLS. Nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Bootstrap makes this node the only voter of a new cluster, unless it has state already.
	Bootstrap bool
	// Forwarder takes proposals to the leader. Nil: Propose answers NO_LEADER on other nodes.
	Forwarder Forwarder

	// Logger discards if nil.
	Logger *slog.Logger
	// Registerer gets the store's metrics, if set.
	Registerer prometheus.Registerer
	// Now is time.Now if nil.
	Now func() time.Time

	// MinFreeBytes is the watermark below which writes are refused. 0: the greater of 512 MiB and 2 % of the file system.
	MinFreeBytes uint64
	// FreeBytes tells how much can still be written below a directory. Nil: asks the file system.
	FreeBytes func(dir string) (uint64, error)
	// DiskCheckInterval is how often it is asked; default 1 s.
	DiskCheckInterval time.Duration

	// ProposeTimeout bounds a Propose or Barrier whose context has no deadline; default 10 s.
	ProposeTimeout time.Duration

	// SnapshotInterval is how often the store looks whether a snapshot is due; default 2 min.
	SnapshotInterval time.Duration
	// SnapshotThreshold is the number of entries after which one is; default 8192.
	SnapshotThreshold uint64
	// TrailingLogs entries stay in the log behind a snapshot, for followers that lag; default 10240.
	TrailingLogs uint64

	// HeartbeatTimeout and ElectionTimeout are how long a follower waits before it calls an election, and how long that
	// may take; default 1 s each. LeaderLease is how long a leader without a majority goes on; default half of it.
	HeartbeatTimeout time.Duration
	ElectionTimeout  time.Duration
	LeaderLease      time.Duration
}

// TLS holds both sides' configuration. Both must prove who they are: plain TCP is never spoken.
// Which certificates may take part is theirs to check (VerifyConnection): every certificate of ClientCAs can write the log.
type TLS struct {
	// Server must have certificates, ClientCAs and ClientAuth RequireAndVerifyClientCert.
	Server *tls.Config
	// Client must have certificates and RootCAs. An empty ServerName becomes the host that is dialled.
	Client *tls.Config
}

// Forwarder takes a proposal to the leader and answers its result. It is the one place where proposals leave a node.
type Forwarder interface {
	// Forward answers an error with reason NO_LEADER if nothing can have happened; after any other error the outcome is
	// unknown, and the same command comes again. leader is what this node knows; it may be empty or out of date.
	Forward(ctx context.Context, leader Leader, c *statev1.Command) (*statev1.Result, error)
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.FreeBytes == nil {
		c.FreeBytes = freeBytes
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	setDefault(&c.DiskCheckInterval, time.Second)
	setDefault(&c.ProposeTimeout, 10*time.Second)
	setDefault(&c.SnapshotInterval, 2*time.Minute)
	setDefault(&c.SnapshotThreshold, 8192)
	setDefault(&c.TrailingLogs, 10240)
	setDefault(&c.HeartbeatTimeout, time.Second)
	setDefault(&c.ElectionTimeout, c.HeartbeatTimeout)
	setDefault(&c.LeaderLease, c.HeartbeatTimeout/2)
}

func setDefault[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

func (c *Config) validate() error {
	if c.Dir == "" || c.State == nil {
		return errors.New("store: Config.Dir and Config.State are required")
	}
	if c.Listener == nil && c.Address == "" {
		return errors.New("store: Config needs a Listener or an Address")
	}
	return c.TLS.validate()
}

func (t TLS) validate() error {
	if t.Server == nil || t.Client == nil {
		return errors.New("store: Config.TLS needs Server and Client: Raft never runs over plain TCP")
	}
	if t.Server.ClientAuth != tls.RequireAndVerifyClientCert || t.Server.ClientCAs == nil {
		return errors.New("store: Config.TLS.Server must require client certificates and verify them by ClientCAs")
	}
	if t.Client.RootCAs == nil || t.Client.InsecureSkipVerify && t.Client.VerifyConnection == nil {
		return errors.New("store: Config.TLS.Client must verify servers by RootCAs")
	}
	return nil
}

// raftConfig is what the library is told.
func (c *Config) raftConfig(id string) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(id)
	r.Logger = newRaftLogger(c.Logger)
	r.HeartbeatTimeout = c.HeartbeatTimeout
	r.ElectionTimeout = c.ElectionTimeout
	r.LeaderLeaseTimeout = c.LeaderLease
	r.CommitTimeout = min(r.CommitTimeout, c.HeartbeatTimeout/4)
	r.MaxAppendEntries = 128
	r.BatchApplyCh = true
	r.SnapshotInterval = c.SnapshotInterval
	r.SnapshotThreshold = c.SnapshotThreshold
	r.TrailingLogs = c.TrailingLogs
	// The table is on disk: recover restores a snapshot only into a table that is behind it.
	r.NoSnapshotRestoreOnStart = true
	// Not RestoreCommittedLogs: the library replays before its state machine runs, into a channel that long logs fill; recover replays.
	r.ShutdownOnRemove = false
	r.NoLegacyTelemetry = true
	return r
}

func (c *Config) listen() (net.Listener, error) {
	if c.Listener != nil {
		return c.Listener, nil
	}
	l, err := net.Listen("tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for raft on %s (is the port taken?): %w", c.Address, err)
	}
	return l, nil
}
