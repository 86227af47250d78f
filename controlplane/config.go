// Package controlplane is one control-plane node: it keeps the cluster's state, takes requests and schedules them.
//
// What belongs here: making the rooms below, letting them meet through their small interfaces, and running them in
// order. What does not: anything that a room could do.
package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Server needs. Fields without a default named are required.
type Config struct {
	// StateDir holds raft, state, blobs, certificates, the root key and admin.json, such as /var/lib/mayfly/server.
	StateDir string
	NodeName string
	// Version of mayfly.
	Version string
	// APIAddress, HTTPAddress and RaftAddress are host:port.
	APIAddress, HTTPAddress, RaftAddress string
	// HTTPTLSCert and HTTPTLSKey are PEM files. Without them HTTP is plain and may only listen on loopback.
	HTTPTLSCert, HTTPTLSKey string
	// MinFreeBytes is the watermark of free disk space below which writes are refused; 0: the stores' own.
	MinFreeBytes uint64
	// KeepAlive is how long an idle sandbox is kept; 0: 10 min.
	KeepAlive time.Duration
	// HostsAgent tells that an agent runs in this process, which attaches by Attach.
	HostsAgent bool
	Logger     *slog.Logger
	// Registry gets the metrics, which the gateway shows.
	Registry *prometheus.Registry
}

const defaultKeepAlive = 10 * time.Minute

func (c *Config) validate() error {
	for name, value := range map[string]string{
		"StateDir": c.StateDir, "NodeName": c.NodeName, "APIAddress": c.APIAddress, "HTTPAddress": c.HTTPAddress, "RaftAddress": c.RaftAddress,
	} {
		if value == "" {
			return fmt.Errorf("controlplane: Config.%s is required", name)
		}
	}
	if c.Logger == nil || c.Registry == nil {
		return errors.New("controlplane: Config.Logger and Config.Registry are required")
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = defaultKeepAlive
	}
	return nil
}

func (c *Config) path(name string) string { return filepath.Join(c.StateDir, name) }

// logger is a room's own.
func (c *Config) logger(room string) *slog.Logger { return c.Logger.With("room", room) }

// httpURL is where the gateway is reached from.
func (c *Config) httpURL() string {
	scheme := "http"
	if c.HTTPTLSCert != "" {
		scheme = "https"
	}
	return scheme + "://" + reachable(c.HTTPAddress, c.NodeName)
}

// reachable replaces a wildcard host, which nobody can dial, by the node's name.
func reachable(address, name string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = name
	}
	return net.JoinHostPort(host, port)
}
