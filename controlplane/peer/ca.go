// Package peer is what any node needs to trust the control plane: the cluster's certificate authority, node
// certificates, and the TLS configurations of servers, agents, Raft and clients.
//
// What belongs here: keys and certificates, their files, and who a connection's other end is. What does not: access
// keys and roles (auth), and what a node may do once it is known.
//
// A node certificate has the node's name as CN, OU "server" or "agent", and the URI mayfly://node/<uuid>. Servers also have
// the DNS name ServerName, which clients check instead of the address that they dialled, so that addresses may change.
package peer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// ServerName is a DNS name in the certificate of every server of a cluster, and in no other.
const ServerName = "server.mayfly.internal"

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// serverLifetime is short of a year; servers renew their own.
	serverLifetime = 365 * 24 * time.Hour
	// agentLifetime is long: an agent gets a new one only by enrolling again.
	agentLifetime = 5 * 365 * 24 * time.Hour
	// backdate lets clocks differ a little.
	backdate = time.Hour

	caCertFile = "ca.crt"
	caKeyFile  = "ca.key"
)

// CA is the cluster's certificate authority.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
	now  func() time.Time
}

// EnsureCA loads the authority from dir (ca.crt, ca.key, both 0600), or makes one there, safe on disk, if there is none.
// now may be nil: time.Now.
func EnsureCA(dir string, now func() time.Time) (*CA, error) {
	if now == nil {
		now = time.Now
	}
	// The certificate is written last: without it the key has signed nothing yet.
	_, err := os.Stat(filepath.Join(dir, caCertFile))
	if errors.Is(err, os.ErrNotExist) {
		err = makeCA(dir, now())
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", dir, err)
	}
	return loadCA(dir, now)
}

func loadCA(dir string, now func() time.Time) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, fmt.Errorf("read the CA certificate: %w", err)
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caCertFile), err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read the CA key: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caKeyFile), err)
	}
	if !samePublicKey(cert.PublicKey, key.Public()) {
		return nil, fmt.Errorf("%s and %s in %s don't belong together", caCertFile, caKeyFile, dir)
	}
	return &CA{cert: cert, key: key, pem: certPEM, now: now}, nil
}

func makeCA(dir string, now time.Time) error {
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "Mayfly cluster CA", Organization: []string{"Mayfly"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("sign the CA certificate: %w", err)
	}
	return writeFiles(dir, file{caKeyFile, keyPEM}, file{caCertFile, encodeCertificate(der)})
}

// CertificatePEM is the authority's certificate, for clients to trust.
func (ca *CA) CertificatePEM() []byte { return ca.pem }

func (ca *CA) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

func (ca *CA) sign(template *x509.Certificate, lifetime time.Duration, public any) ([]byte, error) {
	now := ca.now()
	template.SerialNumber = newSerial()
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(lifetime)
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %q: %w", template.Subject.CommonName, err)
	}
	return encodeCertificate(der), nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// newSerial is 127 random bits: positive, and unique without a register.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate: %w", err)
	}
	return cert, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T can't sign", key)
	}
	return signer, nil
}

func samePublicKey(a, b any) bool {
	key, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
