package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// ServerTLS is for the gRPC API: a client may show a node certificate (see NodeFromContext), and one that it shows must be this cluster's.
func (s *Server) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate(), nil },
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      s.ca.pool(),
		NextProtos:     []string{"h2"},
	}
}

// RaftTLS is for both ends of a connection between servers: each must show a server's certificate.
func (s *Server) RaftTLS() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate(), nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.Certificate(), nil },
		ClientAuth:           tls.RequireAndVerifyClientCert,
		ClientCAs:            s.ca.pool(),
		RootCAs:              s.ca.pool(),
		ServerName:           ServerName,
		VerifyConnection:     requireServer,
	}
}

func requireServer(state tls.ConnectionState) error {
	id, err := identityOfChain(state.VerifiedChains)
	if err != nil {
		return err
	}
	if id.Role != RoleServer {
		return fmt.Errorf("the other end is %s %q and no server of this cluster", id.Role, id.Name)
	}
	return nil
}

// ClientTLS trusts the servers of one cluster, by its authority's certificate (PEM) and whatever address was dialled. It is for the CLI.
func ClientTLS(caPEM []byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return nil, errors.New("the CA certificate is no PEM certificate")
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: ServerName, NextProtos: []string{"h2"}}, nil
}
