// Package api serves the public gRPC API, proto/mayfly/v1: it checks requests, fills defaults, keeps callers within their
// namespace, and proposes commands or reads the state.
//
// What belongs here: a file per service, the rules for each field, deployment packages' safety, paging, and the gRPC
// server with its interceptors. What does not: how commands apply (state), where functions run (router, fleet), HTTP.
//
// Messages handed out by a View are shared and never changed here.
package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// View is a consistent read of the state. Lists are in order of their names, numbers or ids, and begin after the given one.
type View interface {
	Index() uint64
	Namespace(name string) (*mayflyv1.Namespace, bool)
	NamespaceByAccount(id string) (*mayflyv1.Namespace, bool)
	Namespaces() iter.Seq[*mayflyv1.Namespace]
	Function(namespace, name string) (*mayflyv1.Function, bool)
	Functions(namespace, after string) iter.Seq[*mayflyv1.Function]
	Version(namespace, function string, number int64) (*mayflyv1.Version, bool)
	Versions(namespace, function string, after int64) iter.Seq[*mayflyv1.Version]
	Alias(namespace, function, name string) (*mayflyv1.Alias, bool)
	Aliases(namespace, function, after string) iter.Seq[*mayflyv1.Alias]
	AccessKey(id string) (*statev1.AccessKeyRecord, bool)
	// AccessKeys of all namespaces if namespace is empty.
	AccessKeys(namespace, after string) iter.Seq[*statev1.AccessKeyRecord]
	Secret(namespace, name string) (*statev1.SecretRecord, bool)
	Secrets(namespace, after string) iter.Seq[*statev1.SecretRecord]
	// SecretUsers names functions that refer to a secret.
	SecretUsers(namespace, name string, limit int) []string
	// SecretsRevision names a secret that the configuration refers to and that doesn't exist.
	SecretsRevision(namespace string, c *mayflyv1.FunctionConfiguration) (revision uint64, missing string)
	Node(id string) (*mayflyv1.Node, bool)
	NodeByName(name string) (*mayflyv1.Node, bool)
	Nodes() iter.Seq[*mayflyv1.Node]
	Settings() *mayflyv1.Settings
	Cluster() *statev1.ClusterRecord
}

// Invocation is a checked call of a function. Its fields are those of the router's request, in order.
type Invocation struct {
	Namespace string
	Function  string
	// Qualifier is a version number, an alias, $LATEST or empty, which is $LATEST too.
	Qualifier string
	// Payload is JSON.
	Payload       []byte
	LogTail       bool
	ClientContext string
	TraceID       string
	// Stream passes parts of the answer to emit.
	Stream bool
	// RequestID is a UUID.
	RequestID string
}

// Invoker runs functions.
type Invoker interface {
	// Invoke runs one. With Stream, emit gets the parts of a streamed answer; the response's payload is then empty.
	Invoke(ctx context.Context, in *Invocation, emit func([]byte) error) (*mayflyv1.InvokeResponse, error)
	// Resolve finds the version ("$LATEST" or a number) that Invoke would run now, and why none could.
	Resolve(namespace, function, qualifier string) (version string, err error)
}

// Fleet knows the nodes as they are.
type Fleet interface {
	// Nodes that are connected, with what was observed of them.
	Nodes() []*mayflyv1.Node
	Runtimes() []*mayflyv1.RuntimeImage
	// ReadLogs gives lines in order of time until there are no more or, with follow, until ctx ends.
	ReadLogs(ctx context.Context, query *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error
}

// Blobs keep deployment packages by digest.
type Blobs interface {
	// PutChecked stores what r gives if check agrees.
	PutChecked(ctx context.Context, r io.Reader, limit int64, check func(content io.ReaderAt, size int64) error) (digest string, size int64, err error)
	Open(digest string) (*os.File, int64, error)
	// Touch keeps a blob that nobody refers to yet from being collected for a while.
	Touch(digest string) error
}

// Certificates signs those of nodes.
type Certificates interface {
	SignCSR(csrPEM []byte, name, nodeID string) (certPEM []byte, id string, err error)
	CertificatePEM() []byte
}

// Self is what the node that answers says of itself.
type Self struct {
	MayflyVersion string
	NodeID        string
	NodeName      string
	// HTTPURL is the base URL of this node's gateway, such as "http://127.0.0.1:7080".
	HTTPURL string
	// Leader tells whether this node leads the control plane.
	Leader func() bool
}

// Config is what the services work with. All fields but Now are required.
type Config struct {
	// Propose commits a command and returns what apply answered.
	Propose      func(context.Context, *statev1.Command) (*statev1.Result, error)
	View         func() View
	Invoker      Invoker
	Fleet        Fleet
	Blobs        Blobs
	Certificates Certificates
	Keyring      *auth.Keyring
	// RotateRootKey makes a new root key.
	RotateRootKey func(context.Context) (auth.Rotation, error)
	Self          Self
	Log           *slog.Logger
	// Now stamps commands; default time.Now.
	Now func() time.Time
}

func (c Config) validate() error {
	for name, missing := range map[string]bool{
		"Propose": c.Propose == nil, "View": c.View == nil, "Invoker": c.Invoker == nil, "Fleet": c.Fleet == nil, "Blobs": c.Blobs == nil,
		"Certificates": c.Certificates == nil, "Keyring": c.Keyring == nil, "RotateRootKey": c.RotateRootKey == nil, "Self.Leader": c.Self.Leader == nil, "Log": c.Log == nil,
	} {
		if missing {
			return fmt.Errorf("api: Config.%s is missing", name)
		}
	}
	return nil
}

// API is the services of proto/mayfly/v1.
type API struct {
	core *core
}

// New makes the services.
func New(cfg Config) (*API, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &API{core: &core{Config: cfg, packages: newPackages(cfg.Blobs, runtime.GOMAXPROCS(0))}}, nil
}

// Register adds all services to a server whose interceptors put the caller into the context (auth.FromContext).
func (a *API) Register(s grpc.ServiceRegistrar) {
	mayflyv1.RegisterFunctionServiceServer(s, &functionService{core: a.core})
	mayflyv1.RegisterVersionServiceServer(s, &versionService{core: a.core})
	mayflyv1.RegisterAliasServiceServer(s, &aliasService{core: a.core})
	mayflyv1.RegisterInvocationServiceServer(s, &invocationService{core: a.core})
	mayflyv1.RegisterLogServiceServer(s, &logService{core: a.core})
	mayflyv1.RegisterNodeServiceServer(s, &nodeService{core: a.core})
	mayflyv1.RegisterAccessKeyServiceServer(s, &accessKeyService{core: a.core})
	mayflyv1.RegisterNamespaceServiceServer(s, &namespaceService{core: a.core})
	mayflyv1.RegisterClusterServiceServer(s, &clusterService{core: a.core})
	mayflyv1.RegisterSecretServiceServer(s, &secretService{core: a.core})
}

// core is what all services share.
type core struct {
	Config
	packages *packages
}

// sealAttempts is how often something is sealed anew because the root key was rotated meanwhile.
const sealAttempts = 5

// proposeSealed proposes what seal makes, again if the root key was rotated between the sealing and the commit.
func (c *core) proposeSealed(ctx context.Context, seal func() *statev1.Command) (*statev1.Result, error) {
	for attempt := 1; ; attempt++ {
		result, err := c.propose(ctx, seal())
		if attempt == sealAttempts || !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_ROOT_KEY_ROTATED) {
			return result, err
		}
	}
}

// propose commits a command under an id of its own, so that it takes effect once however often it is retried below.
func (c *core) propose(ctx context.Context, command *statev1.Command) (*statev1.Result, error) {
	command.ProposalId = uuid.NewString()
	command.Time = timestamppb.New(c.Now())
	result, err := c.Propose(ctx, command)
	if err != nil {
		return nil, err
	}
	if result == nil {
		return nil, errors.New("the store answered nothing")
	}
	return result, nil
}
