package peer

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	serverCertFile = "server.crt"
	serverKeyFile  = "server.key"
	// retryRenewal spaces attempts to renew after one failed.
	retryRenewal = time.Minute
)

// ServerConfig says whose certificate a Server keeps.
type ServerConfig struct {
	// Dir is the directory of the authority's files.
	Dir string
	// NodeID is a UUID.
	NodeID string
	// NodeName becomes a DNS name of the certificate too.
	NodeName string
	// Addresses are further hosts or IP addresses, with or without port, that clients dial.
	Addresses []string
	// Log tells of renewals.
	Log *slog.Logger
}

// Server keeps the certificate of this control-plane node fresh: it is renewed with less than a third of its life left, also while the node runs.
type Server struct {
	ca  *CA
	cfg ServerConfig

	mu      sync.Mutex
	current *tls.Certificate
	// renewAt is when the next handshake renews the certificate.
	renewAt time.Time
}

// NewServer loads the node's certificate from cfg.Dir, or issues one if it is missing, old, or not for this node and its addresses.
func (ca *CA) NewServer(cfg ServerConfig) (*Server, error) {
	s := &Server{ca: ca, cfg: cfg}
	if cert, err := s.load(); err == nil && s.fits(cert.Leaf) {
		s.use(cert)
		return s, nil
	}
	if err := s.issue(); err != nil {
		return nil, err
	}
	return s, nil
}

// Certificate is the current one; a due renewal happens first. A renewal that fails is logged and tried again a minute later.
func (s *Server) Certificate() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.ca.now(); !now.Before(s.renewAt) {
		s.renewAt = now.Add(retryRenewal)
		if err := s.issue(); err != nil {
			s.cfg.Log.Error("renew the node's certificate", "error", err)
		}
	}
	return s.current
}

// issue replaces key and certificate, on disk and in use.
func (s *Server) issue() error {
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	template := s.template()
	certPEM, err := s.ca.sign(template, serverLifetime, key.Public())
	if err != nil {
		return err
	}
	if err := writeFiles(s.cfg.Dir, file{serverKeyFile, keyPEM}, file{serverCertFile, certPEM}); err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("use the new certificate: %w", err)
	}
	s.use(&cert)
	s.cfg.Log.Info("issued a certificate for this node", "node", s.cfg.NodeName, "until", cert.Leaf.NotAfter)
	return nil
}

func (s *Server) use(cert *tls.Certificate) {
	s.current = cert
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	s.renewAt = cert.Leaf.NotAfter.Add(-life / 3)
}

func (s *Server) load() (*tls.Certificate, error) {
	certPEM, err := os.ReadFile(filepath.Join(s.cfg.Dir, serverCertFile))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(s.cfg.Dir, serverKeyFile))
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	return &cert, err
}

// fits tells whether a certificate is this authority's, for this node, with all of its addresses, and has a third of its life left.
func (s *Server) fits(cert *x509.Certificate) bool {
	now := s.ca.now()
	_, err := cert.Verify(x509.VerifyOptions{Roots: s.ca.pool(), CurrentTime: now, DNSName: ServerName})
	if err != nil || cert.NotAfter.Sub(now) < cert.NotAfter.Sub(cert.NotBefore)/3 {
		return false
	}
	want := s.template()
	id, err := identityOf(cert)
	return err == nil && id == Identity{ID: s.cfg.NodeID, Name: s.cfg.NodeName, Role: RoleServer} &&
		slices.Equal(cert.DNSNames, want.DNSNames) && slices.EqualFunc(cert.IPAddresses, want.IPAddresses, net.IP.Equal)
}

func (s *Server) template() *x509.Certificate {
	names, ips := s.hosts()
	return &x509.Certificate{
		Subject:     subject(s.cfg.NodeName, RoleServer),
		URIs:        []*url.URL{nodeURI(s.cfg.NodeID)},
		DNSNames:    names,
		IPAddresses: ips,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// hosts are the names and addresses of this node, sorted and without doubles. Wildcard addresses such as 0.0.0.0 are left out.
func (s *Server) hosts() (names []string, ips []net.IP) {
	names = []string{ServerName, "localhost", s.cfg.NodeName}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	ips = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, address := range s.cfg.Addresses {
		host := hostOf(address)
		if ip := net.ParseIP(host); ip == nil && host != "" {
			names = append(names, host)
		} else if ip != nil && !ip.IsUnspecified() {
			ips = append(ips, ip)
		}
	}
	slices.Sort(names)
	slices.SortFunc(ips, func(a, b net.IP) int { return strings.Compare(a.String(), b.String()) })
	return slices.DeleteFunc(slices.Compact(names), notDNS), slices.CompactFunc(ips, net.IP.Equal)
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// notDNS tells of names that can't stand in a certificate.
func notDNS(name string) bool {
	return name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}
