package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Role is what a node certificate is for.
type Role string

// Roles of nodes, the OU of their certificates.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
)

// Identity is who a node is, by its certificate.
type Identity struct {
	// ID is a UUID.
	ID   string
	Name string
	Role Role
}

// NodeFromContext is the node at the other end of a gRPC call, by its verified client certificate. Without one the error is UNAUTHENTICATED.
func NodeFromContext(ctx context.Context) (Identity, error) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return Identity{}, unauthenticated("the call came over no connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Identity{}, unauthenticated("the connection has no TLS")
	}
	id, err := identityOfChain(info.State.VerifiedChains)
	if err != nil {
		return Identity{}, unauthenticated(err.Error())
	}
	return id, nil
}

func unauthenticated(why string) error {
	return fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, "a node certificate of this cluster is needed: %s", why)
}

func identityOfChain(chains [][]*x509.Certificate) (Identity, error) {
	if len(chains) == 0 || len(chains[0]) == 0 {
		return Identity{}, errors.New("no client certificate was shown")
	}
	return identityOf(chains[0][0])
}

func identityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || len(cert.Subject.OrganizationalUnit) != 1 {
		return Identity{}, errors.New("the certificate is no node's")
	}
	uri := cert.URIs[0]
	id := strings.TrimPrefix(uri.Path, "/")
	role := Role(cert.Subject.OrganizationalUnit[0])
	if uri.Scheme != "mayfly" || uri.Host != "node" || uuid.Validate(id) != nil || role != RoleServer && role != RoleAgent {
		return Identity{}, errors.New("the certificate is no node's")
	}
	return Identity{ID: id, Name: cert.Subject.CommonName, Role: role}, nil
}

const (
	nodeCertFile = "node.crt"
	nodeKeyFile  = "node.key"
)

// Credentials are what an agent needs to open a session, all PEM.
type Credentials struct {
	Certificate   []byte
	Key           []byte
	CACertificate []byte
}

// ErrNotEnrolled is returned by Load for a directory without credentials.
var ErrNotEnrolled = errors.New("this node is not enrolled")

// Save writes credentials to dir as node.key, ca.crt and node.crt, 0600 and safe on disk. Credentials that don't belong together are refused.
func (c Credentials) Save(dir string) error {
	if _, err := c.Identity(); err != nil {
		return err
	}
	return writeFiles(dir, file{nodeKeyFile, c.Key}, file{caCertFile, c.CACertificate}, file{nodeCertFile, c.Certificate})
}

// Load reads what Save wrote; the error wraps ErrNotEnrolled if there is no certificate.
func Load(dir string) (Credentials, error) {
	var c Credentials
	for name, content := range map[string]*[]byte{nodeCertFile: &c.Certificate, nodeKeyFile: &c.Key, caCertFile: &c.CACertificate} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			return Credentials{}, fmt.Errorf("%w: no %s in %s", ErrNotEnrolled, name, dir)
		}
		if err != nil {
			return Credentials{}, fmt.Errorf("read the node's credentials: %w", err)
		}
		*content = data
	}
	if _, err := c.Identity(); err != nil {
		return Credentials{}, fmt.Errorf("credentials in %s: %w", dir, err)
	}
	return c, nil
}

// Identity is who these credentials make their owner. Time is not checked here.
func (c Credentials) Identity() (Identity, error) {
	pair, err := tls.X509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return Identity{}, fmt.Errorf("certificate and key: %w", err)
	}
	ca, err := parseCertificate(c.CACertificate)
	if err != nil {
		return Identity{}, fmt.Errorf("CA certificate: %w", err)
	}
	if err := pair.Leaf.CheckSignatureFrom(ca); err != nil {
		return Identity{}, fmt.Errorf("the certificate is not this CA's: %w", err)
	}
	return identityOf(pair.Leaf)
}

// TLS is for an agent's connections to control-plane nodes.
func (c Credentials) TLS() (*tls.Config, error) {
	cfg, err := ClientTLS(c.CACertificate)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}
