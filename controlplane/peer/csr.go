package peer

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"

	"github.com/google/uuid"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	minECBits  = 256
	minRSABits = 3072
)

// NewRequest makes a key and a certificate signing request for a node, both PEM. The key never leaves the node.
func NewRequest(name string) (keyPEM, csrPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// SignCSR signs an agent's request: the certificate is for the given name whatever the request says, and good for nothing but to
// open a session. An empty nodeID makes a new UUID. A request that is malformed, not signed by its own key or with a weak key (below P-256, Ed25519 or RSA 3072) is INVALID_ARGUMENT.
func (ca *CA) SignCSR(csrPEM []byte, name, nodeID string) (certPEM []byte, id string, err error) {
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, "", err
	}
	if nodeID == "" {
		nodeID = uuid.NewString()
	}
	certPEM, err = ca.sign(&x509.Certificate{
		Subject:     subject(name, RoleAgent),
		URIs:        []*url.URL{nodeURI(nodeID)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, agentLifetime, csr.PublicKey)
	if err != nil {
		return nil, "", err
	}
	return certPEM, nodeID, nil
}

func parseRequest(csrPEM []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, invalidRequest("is no PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, invalidRequest("can't be parsed")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, invalidRequest("is not signed by its own key")
	}
	if !strong(csr.PublicKey) {
		return nil, invalidRequest("has a key that is too weak: use ECDSA P-256 or better, Ed25519, or RSA with 3072 bits or more")
	}
	return csr, nil
}

func strong(public any) bool {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return key.Curve.Params().BitSize >= minECBits
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSABits
	case ed25519.PublicKey:
		return true
	default:
		return false
	}
}

func invalidRequest(what string) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "certificate_signing_request %s", what)
}

func subject(name string, role Role) pkix.Name {
	return pkix.Name{CommonName: name, Organization: []string{"Mayfly"}, OrganizationalUnit: []string{string(role)}}
}

func nodeURI(id string) *url.URL {
	return &url.URL{Scheme: "mayfly", Host: "node", Path: "/" + id}
}
