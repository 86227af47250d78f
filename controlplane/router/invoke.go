package router

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// maxAttempts is how often an invocation is tried on another sandbox, or resolved again, before it fails.
const maxAttempts = 10

// unhandled is the function error of everything but an answer.
const unhandled = "Unhandled"

// Request is one synchronous invocation.
type Request struct {
	// Namespace is "default" if empty.
	Namespace string
	// Function is NAME, NAME:QUALIFIER or an ARN.
	Function string
	// Qualifier is a version number, an alias or $LATEST (if empty).
	Qualifier string
	// Payload is JSON of at most MaxPayloadBytes; empty is {}. The callee doesn't change it.
	Payload []byte
	// LogTail asks for the last 4 KiB of the invocation's log.
	LogTail bool
	// ClientContext is JSON for the function's context.
	ClientContext string
	// TraceID is in the form of X-Amzn-Trace-Id; one is made if it is empty.
	TraceID string
	// Stream allows the answer to come in chunks.
	Stream bool
	// RequestID is a UUID; one is made if it is empty.
	RequestID string
}

// Invoke runs one invocation. emit gets the chunks of a streamed answer, in order; nil buffers it. A function that fails
// is no error: the response has function_error set then.
//
// While the invocation waits for a sandbox the end of ctx ends it. Once it runs, Invoke returns when the agent says that
// the sandbox is free: a caller that goes away doesn't end the function.
//
// Errors: those of Resolve; PAYLOAD_TOO_LARGE; FUNCTION_NOT_ACTIVE; FUNCTION_CONCURRENCY_EXCEEDED,
// NAMESPACE_CONCURRENCY_EXCEEDED, QUEUE_FULL, NO_CAPACITY (all ResourceExhausted); NODE_LOST: whether it ran is unknown.
func (r *Router) Invoke(ctx context.Context, req *Request, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
	if len(req.Payload) > MaxPayloadBytes {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE,
			"the payload has %d bytes, at most %d are allowed", len(req.Payload), MaxPayloadBytes)
	}
	call := call{router: r, request: req, emit: emit}
	start := time.Now()
	resp, err := call.run(ctx)
	if call.measured != nil {
		r.metrics.count(call.measured, resp, err, time.Since(start))
	}
	return resp, err
}

// run tries until the function has run, or there is no use in trying.
func (c *call) run(ctx context.Context) (*mayflyv1.InvokeResponse, error) {
	key := routeKey{c.request.Namespace, c.request.Function, c.request.Qualifier}
	for attempt := 1; ; attempt++ {
		resp, err := c.attempt(ctx, key)
		if err == nil {
			return resp, nil
		}
		if !retryable(err) || attempt == maxAttempts {
			return nil, c.final(err)
		}
	}
}

// retryable tells that nothing ran: the pool was forgotten, the version is outdated or the sandbox was gone.
func retryable(err error) bool {
	return errors.Is(err, errClosed) || fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE)
}

// call is an invocation on its way.
type call struct {
	router  *Router
	request *Request
	emit    func([]byte) error
	emitErr error
	// measured is set once the function is known.
	measured *measured
}

func (c *call) final(err error) error {
	if errors.Is(err, errClosed) {
		return fault.Internal(err, "no sandbox was found for function %q", c.request.Function)
	}
	return err
}

func (c *call) attempt(ctx context.Context, key routeKey) (*mayflyv1.InvokeResponse, error) {
	t, err := c.router.resolve(key)
	if err != nil {
		return nil, err
	}
	c.measured = t.measured
	if t, err = c.router.active(ctx, key, t); err != nil {
		return nil, err
	}
	g, err := t.pool.take(ctx)
	switch {
	case errors.Is(err, errClosed):
		c.router.routes.forget(key)
		return nil, err
	case err != nil:
		return nil, err
	case g.lease == nil:
		return c.initFailed(t, g.started), nil
	case g.waited && c.router.outdated(t):
		t.pool.put(g.lease)
		return nil, errOutdated(t)
	}
	return c.use(ctx, t, g)
}

func errOutdated(t *Target) error {
	return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE, "function %q was changed while the invocation waited", t.Spec.GetFunction())
}

// active waits a while for a function that is Pending. Published versions were prepared before.
func (r *Router) active(ctx context.Context, key routeKey, t *Target) (*Target, error) {
	fn := t.Function
	if fn.ReservedConcurrency != nil && fn.GetReservedConcurrency() == 0 {
		return nil, fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_CONCURRENCY_EXCEEDED,
			"Rate Exceeded. Function %q in namespace %q is stopped: its reserved concurrency is 0", fn.GetName(), fn.GetNamespace())
	}
	if fn.GetState() == mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE || t.Version() != latest {
		return t, nil
	}
	return r.waitActive(ctx, key)
}

func (r *Router) waitActive(ctx context.Context, key routeKey) (*Target, error) {
	limit := time.NewTimer(r.cfg.PendingWait)
	defer limit.Stop()
	for {
		changed := r.now().changed
		t, err := r.resolve(key)
		if err != nil {
			return nil, err
		}
		switch t.Function.GetState() {
		case mayflyv1.FunctionState_FUNCTION_STATE_FAILED:
			return nil, notActive(t.Function, "is Failed: "+t.Function.GetStateReason())
		case mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE:
			return t, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, gone(ctx)
		case <-limit.C:
			return nil, notActive(t.Function, fmt.Sprintf("is still Pending after %v: %s", r.cfg.PendingWait, pendingReason(t.Function)))
		}
	}
}

func pendingReason(fn *mayflyv1.Function) string {
	if fn.GetStateReason() != "" {
		return fn.GetStateReason()
	}
	return "no node has prepared its code yet, see `mayfly node list`"
}

func notActive(fn *mayflyv1.Function, what string) error {
	return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_ACTIVE, "function %q in namespace %q %s", fn.GetName(), fn.GetNamespace(), what)
}

func gone(ctx context.Context) error {
	e := fault.New(codes.Canceled, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "the caller went away while the invocation waited for a sandbox")
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.Code, e.Message = codes.DeadlineExceeded, "the caller's deadline passed while the invocation waited for a sandbox"
	}
	e.Cause = context.Cause(ctx)
	return e
}

// use uses the lease and puts it back.
func (c *call) use(ctx context.Context, t *Target, g grant) (*mayflyv1.InvokeResponse, error) {
	req := c.toAgent(t, g)
	resp, err := g.lease.Invoke(ctx, req, c.chunks())
	if err != nil {
		t.pool.discard(g.lease, sandboxGone(err))
		return nil, err
	}
	if resp.GetSandboxGone() {
		t.pool.discard(g.lease, true)
	} else {
		t.pool.put(g.lease)
	}
	if c.emitErr != nil {
		return nil, c.emitErr
	}
	return c.response(t, g, req.GetRequestId(), resp), nil
}

func sandboxGone(err error) bool {
	return fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE) || fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST)
}

func (c *call) toAgent(t *Target, g grant) *agentv1.InvokeRequest {
	r := c.request
	req := &agentv1.InvokeRequest{
		RequestId: r.RequestID, Payload: r.Payload, InvokedArn: t.InvokedARN, TraceId: r.TraceID,
		ClientContext: r.ClientContext, LogTail: r.LogTail, Stream: r.Stream && c.emit != nil,
		InitDuration: g.started.GetInitDuration(),
	}
	if req.RequestId == "" {
		req.RequestId = uuid.NewString()
	}
	if req.TraceId == "" {
		req.TraceId = newTraceID()
	}
	if len(req.Payload) == 0 {
		req.Payload = []byte("{}")
	}
	return req
}

// newTraceID makes a root in the form of X-Amzn-Trace-Id.
func newTraceID() string {
	var raw [24]byte
	binary.BigEndian.PutUint32(raw[:], uint32(time.Now().Unix()))
	binary.BigEndian.PutUint32(raw[4:], rand.Uint32())
	binary.BigEndian.PutUint64(raw[8:], rand.Uint64())
	binary.BigEndian.PutUint64(raw[16:], rand.Uint64())
	buf := make([]byte, 0, 80)
	buf = hex.AppendEncode(append(buf, "Root=1-"...), raw[:4])
	buf = hex.AppendEncode(append(buf, '-'), raw[4:16])
	buf = hex.AppendEncode(append(buf, ";Parent="...), raw[16:])
	return string(append(buf, ";Sampled=0"...))
}

// chunks passes chunks on until the caller fails to take one; the function goes on all the same.
func (c *call) chunks() func([]byte) error {
	if c.emit == nil {
		return nil
	}
	return func(chunk []byte) error {
		if c.emitErr == nil {
			c.emitErr = c.emit(chunk)
		}
		return nil
	}
}

func (c *call) response(t *Target, g grant, requestID string, resp *agentv1.InvokeResponse) *mayflyv1.InvokeResponse {
	report := resp.GetReport()
	if report == nil {
		report = &mayflyv1.InvocationReport{MemoryMb: int32(t.Spec.GetMemoryBytes() >> 20)}
	}
	report.InitDuration = g.started.GetInitDuration()
	return &mayflyv1.InvokeResponse{
		Payload: resp.GetPayload(), FunctionError: resp.GetFunctionError(), LogTail: resp.GetLogTail(),
		ExecutedVersion: t.Version(), RequestId: requestID, Report: report,
	}
}

// initFailed answers the invocation whose start failed in the function's init.
func (c *call) initFailed(t *Target, started *agentv1.CreateSandboxResponse) *mayflyv1.InvokeResponse {
	requestID := c.request.RequestID
	if requestID == "" {
		requestID = uuid.NewString()
	}
	resp := &mayflyv1.InvokeResponse{
		Payload: withRequestID(started.GetInitError(), requestID), FunctionError: unhandled, ExecutedVersion: t.Version(), RequestId: requestID,
		Report: &mayflyv1.InvocationReport{InitDuration: started.GetInitDuration(), MemoryMb: int32(t.Spec.GetMemoryBytes() >> 20)},
	}
	if c.request.LogTail {
		resp.LogTail = started.GetLogTail()
	}
	return resp
}

// withRequestID adds the request id to a JSON error; what is no JSON object is left as it is.
func withRequestID(initError []byte, requestID string) []byte {
	var fields map[string]any
	if json.Unmarshal(initError, &fields) != nil || fields == nil {
		return initError
	}
	if _, has := fields["requestId"]; !has {
		fields["requestId"] = requestID
	}
	out, err := json.Marshal(fields)
	if err != nil {
		return initError
	}
	return out
}
