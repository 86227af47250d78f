package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/grpc"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Limits of an invocation, as AWS Lambda documents them, in bytes.
const (
	maxPayload       = 6_291_556
	maxClientContext = 3583
	maxTraceID       = 256
)

type invocationService struct {
	mayflyv1.UnimplementedInvocationServiceServer
	*core
}

// Invoke calls a function and waits for its answer.
func (s *invocationService) Invoke(ctx context.Context, r *mayflyv1.InvokeRequest) (*mayflyv1.InvokeResponse, error) {
	in, err := s.invocation(ctx, r)
	if err != nil {
		return nil, err
	}
	if r.GetType() == mayflyv1.InvocationType_INVOCATION_TYPE_DRY_RUN {
		return s.dryRun(in)
	}
	return s.Invoker.Invoke(ctx, in, nil)
}

// InvokeStream calls a function and passes on its answer as it is written. An answer that is not streamed comes as one chunk.
func (s *invocationService) InvokeStream(r *mayflyv1.InvokeStreamRequest, stream grpc.ServerStreamingServer[mayflyv1.InvokeStreamResponse]) error {
	in, err := s.invocation(stream.Context(), r.GetInvoke())
	if err != nil {
		return err
	}
	response, err := s.stream(in, r.GetInvoke().GetType(), stream)
	if err != nil {
		return err
	}
	return stream.Send(&mayflyv1.InvokeStreamResponse{Event: &mayflyv1.InvokeStreamResponse_Complete{Complete: response}})
}

func (s *invocationService) stream(in *Invocation, kind mayflyv1.InvocationType, stream grpc.ServerStreamingServer[mayflyv1.InvokeStreamResponse]) (*mayflyv1.InvokeResponse, error) {
	if kind == mayflyv1.InvocationType_INVOCATION_TYPE_DRY_RUN {
		return s.dryRun(in)
	}
	emit := func(chunk []byte) error {
		return stream.Send(&mayflyv1.InvokeStreamResponse{Event: &mayflyv1.InvokeStreamResponse_Chunk{Chunk: chunk}})
	}
	in.Stream = true
	response, err := s.Invoker.Invoke(stream.Context(), in, emit)
	if err != nil {
		return nil, err
	}
	if payload := response.GetPayload(); len(payload) > 0 && response.GetFunctionError() == "" {
		if err := emit(payload); err != nil {
			return nil, err
		}
		response.Payload = nil
	}
	return response, nil
}

func (s *invocationService) dryRun(in *Invocation) (*mayflyv1.InvokeResponse, error) {
	version, err := s.Invoker.Resolve(in.Namespace, in.Function, in.Qualifier)
	if err != nil {
		return nil, err
	}
	return &mayflyv1.InvokeResponse{ExecutedVersion: version, RequestId: in.RequestID}, nil
}

// invocation checks a request. Whether the function exists is the invoker's to know: a warm call asks only once.
func (s *invocationService) invocation(ctx context.Context, r *mayflyv1.InvokeRequest) (*Invocation, error) {
	ref, err := parseFunctionRef(r.GetFunction())
	if err != nil {
		return nil, err
	}
	qualifier, err := oneQualifier(ref.qualifier, r.GetQualifier())
	if err != nil {
		return nil, err
	}
	ns, err := namespaceOf(ctx, s.View(), r.GetNamespace(), ref)
	if err != nil {
		return nil, err
	}
	if err := checkInvocation(r); err != nil {
		return nil, err
	}
	in := &Invocation{
		Namespace: ns.GetName(), Function: ref.name, Qualifier: qualifier, Payload: r.GetPayload(),
		LogTail: r.GetLogTail(), ClientContext: r.GetClientContext(), TraceID: r.GetTraceId(), RequestID: requestID(ctx),
	}
	if len(in.Payload) == 0 {
		in.Payload = []byte("{}")
	}
	if in.TraceID == "" {
		in.TraceID = s.newTraceID()
	}
	return in, nil
}

// oneQualifier stays empty if there is none: the ARN that the function sees has none then.
func oneQualifier(inName, given string) (string, error) {
	if inName != "" && given != "" && inName != given {
		return "", invalid("function names the qualifier %.200q, but qualifier is %.200q: give one", inName, given)
	}
	if given == "" {
		given = inName
	}
	if given == "" {
		return "", nil
	}
	return checkQualifier("qualifier", given)
}

// namespaceOf is namespace, or for an ARN the one with its account.
func namespaceOf(ctx context.Context, view View, requested string, ref functionRef) (*mayflyv1.Namespace, error) {
	if ref.account == "" {
		return namespace(ctx, view, requested)
	}
	ns, ok := view.NamespaceByAccount(ref.account)
	if !ok {
		return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_NOT_FOUND, "there is no namespace with the account %.100q", ref.account)
	}
	if requested != "" && requested != ns.GetName() {
		return nil, invalid("function is an ARN of namespace %q, but namespace is %q: give one", ns.GetName(), requested)
	}
	return namespace(ctx, view, ns.GetName())
}

func checkInvocation(r *mayflyv1.InvokeRequest) error {
	switch r.GetType() {
	case mayflyv1.InvocationType_INVOCATION_TYPE_UNSPECIFIED, mayflyv1.InvocationType_INVOCATION_TYPE_REQUEST_RESPONSE, mayflyv1.InvocationType_INVOCATION_TYPE_DRY_RUN:
	default:
		return invalid("type %v is not one of INVOCATION_TYPE_REQUEST_RESPONSE and INVOCATION_TYPE_DRY_RUN", r.GetType())
	}
	if n := len(r.GetPayload()); n > maxPayload {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE, "payload has %d bytes; at most %d are allowed", n, maxPayload)
	}
	if len(r.GetPayload()) > 0 && !json.Valid(r.GetPayload()) {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAYLOAD, "payload is not JSON")
	}
	if n := len(r.GetClientContext()); n > maxClientContext {
		return invalid("client_context has %d bytes; at most %d are allowed", n, maxClientContext)
	}
	if r.GetClientContext() != "" && !isJSONObject(r.GetClientContext()) {
		return invalid("client_context is not a JSON object")
	}
	if id := r.GetTraceId(); len(id) > maxTraceID || strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' }) {
		return invalid("trace_id is not at most %d printable ASCII characters", maxTraceID)
	}
	return nil
}

func isJSONObject(text string) bool {
	return json.Valid([]byte(text)) && strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{")
}

// newTraceID makes one in the form of X-Amzn-Trace-Id.
func (c *core) newTraceID() string {
	var random [12]byte
	_, _ = rand.Read(random[:]) // never fails
	return fmt.Sprintf("Root=1-%08x-%s", uint32(c.Now().Unix()), hex.EncodeToString(random[:]))
}
