package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/logs"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// maxResponse is Lambda's limit of a buffered answer, in bytes.
	maxResponse = 6_291_556
	// An invocation that took at least this long has its memory measured; else the last sample, at most about
	// a second old, has to do.
	sampleFrom = 20 * time.Millisecond

	// While little else runs here, the answer of a function that took less than spinBelow the last time is awaited
	// without sleeping, for at most spinLimit.
	spinBelow = 300 * time.Microsecond
	spinLimit = 200 * time.Microsecond

	unhandled = "Unhandled"
)

// invocation is one call on its way through a sandbox.
type invocation struct {
	box      *box
	link     *link
	attempt  *attempt
	epoch    uint32
	request  *agentv1.InvokeRequest
	emit     func([]byte) error
	start    time.Time
	deadline time.Time

	// The answer.
	payload   []byte
	errorType string // empty: success
	tooLarge  bool
	buffered  int64
	streamed  bool
}

// Invoke implements Worker. It returns when the function has ended, also if ctx has: until then the sandbox
// is busy. Errors: SANDBOX_GONE if the event never reached the function; NODE_LOST if the sandbox was destroyed
// while it ran. Whatever else happens to the function is an InvokeResponse.
func (a *Agent) Invoke(ctx context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.New(codes.Canceled, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "the caller of request %s has gone: %v", r.GetRequestId(), err)
	}
	if len(r.GetPayload()) > maxResponse {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE, "the payload has %d bytes; the limit is %d", len(r.GetPayload()), maxResponse)
	}
	named := a.named(r.GetSandboxId())
	if named == nil {
		return nil, sandboxGone(r, "there is no such sandbox here")
	}
	if named.group.quick(quickBelow) {
		a.turns.enter()
		defer a.turns.leave()
	}
	b, m, refusal := a.invoke(r.GetSandboxId(), grantOf(r.GetGrant()))
	if refusal != sandbox.Accepted {
		return nil, sandboxGone(r, refusal.String())
	}
	b.usedSince.Store(true)
	start := time.Now()
	i := invocation{
		box: b, attempt: b.attempt, link: b.attempt.link, epoch: m.Epoch, request: r, emit: emit,
		start: start, deadline: start.Add(b.spec.GetTimeout().AsDuration()),
	}
	a.running.Add(1)
	defer a.running.Add(-1)
	return i.run()
}

func grantOf(g *agentv1.Grant) sandbox.Grant {
	return sandbox.Grant{Term: g.GetTerm(), Sequence: g.GetSequence()}
}

func sandboxGone(r *agentv1.InvokeRequest, why string) error {
	return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_SANDBOX_GONE,
		"request %s did not reach sandbox %s: %s", r.GetRequestId(), r.GetSandboxId(), why)
}

// run sends the event, reads the answer and closes the invocation's log.
func (i *invocation) run() (*agentv1.InvokeResponse, error) {
	i.box.logs.Begin(i.request.GetRequestId(), i.request.GetLogTail())
	sent, err := i.roundTrip()
	if err == nil {
		return i.answered(), nil
	}
	return i.broken(sent, err)
}

func (i *invocation) roundTrip() (sent bool, err error) {
	l := i.link
	if err := l.quiet(); err != nil {
		return false, err
	}
	// A process with this deadline can't be interrupted but by closing the connection.
	if err := l.conn.SetReadDeadline(i.deadline); err != nil {
		return false, err
	}
	event := i.request.GetPayload()
	if len(event) == 0 {
		event = emptyEvent
	}
	l.meta = i.appendMeta(l.meta[:0])
	if err := l.send(event, i.deadline); err != nil {
		// An unfinished frame is not acted on, but one that ran out of time has cost the function's time.
		return errors.Is(err, os.ErrDeadlineExceeded), err
	}
	if i.mayspin() {
		l.spin(spinLimit)
	}
	return true, i.read()
}

// mayspin tells whether there are idle CPUs enough, and the answer is to be expected at once.
func (i *invocation) mayspin() bool {
	return i.box.lastTook < spinBelow && i.box.agent.running.Load() <= i.box.agent.spinners
}

// read takes frames until the answer is complete.
func (i *invocation) read() error {
	for {
		t, n, err := i.link.header()
		if err != nil {
			return err
		}
		switch t {
		case frame.TypeResult:
			return i.take(n)
		case frame.TypeError:
			return i.takeError(n)
		case frame.TypeStreamBegin:
			err = i.link.discard(n)
		case frame.TypeStream:
			err = i.takeChunk(n)
		case frame.TypeStreamEnd:
			if n == 0 {
				return nil
			}
			return i.takeError(n)
		case frame.TypeExit:
			return i.takeExit(n)
		default:
			return errProtocol
		}
		if err != nil {
			return err
		}
	}
}

func (i *invocation) take(n int64) (err error) {
	if n > maxResponse {
		i.tooLarge = true
		return i.link.discard(n)
	}
	i.payload, err = i.link.body(n)
	return err
}

func (i *invocation) takeError(n int64) error {
	if err := i.take(n); err != nil {
		return err
	}
	if !i.tooLarge {
		i.payload, i.errorType = functionError(i.payload, i.request.GetRequestId())
	}
	return nil
}

// takeExit returns an exitError.
func (i *invocation) takeExit(n int64) error {
	if n > maxResponse {
		return errProtocol
	}
	body, err := i.link.body(n)
	if err != nil {
		return err
	}
	return readExit(body)
}

// takeChunk passes a part of a streamed answer on, or buffers it. A caller who takes no more loses the rest.
func (i *invocation) takeChunk(n int64) error {
	if i.emit == nil && !i.streamed {
		i.buffered += n
		if i.buffered > maxResponse {
			i.tooLarge, i.payload = true, nil
			return i.link.discard(n)
		}
	}
	if n > frame.MaxBody {
		return errProtocol
	}
	chunk, err := i.link.body(n)
	switch {
	case err != nil:
		return err
	case i.streamed || i.emit != nil:
		i.streamed = true
		if i.emit != nil && i.emit(chunk) != nil {
			i.emit = nil
		}
	default:
		i.payload = append(i.payload, chunk...)
	}
	return nil
}

// answered ends an invocation that the function has answered.
func (i *invocation) answered() *agentv1.InvokeResponse {
	b := i.box
	took := time.Since(i.start)
	b.lastTook = took
	b.group.took(took)
	if took >= sampleFrom || !b.wasSampled {
		b.wasSampled = true
		b.sample()
	}
	outcome := &b.agent.metrics.ok
	if i.tooLarge {
		i.payload, i.errorType = responseTooLarge(), errorTooLarge
	}
	if i.errorType != "" {
		outcome = &b.agent.metrics.failed
	}
	resp := i.response(took, logs.Report{})
	m, _, _ := b.step(sandbox.Event{Kind: sandbox.EventAnswer, Attempt: i.attempt.number})
	select {
	case <-i.attempt.exited:
		b.exited(i.attempt)
		resp.SandboxGone = true
	default:
		resp.SandboxGone = m.State != sandbox.StateIdle
	}
	if !resp.GetSandboxGone() {
		b.group.wait(b)
	}
	(*outcome).Inc()
	return resp
}

// response closes the log and makes the answer. report says more for its REPORT line.
func (i *invocation) response(took time.Duration, report logs.Report) *agentv1.InvokeResponse {
	b := i.box
	report.Duration, report.Init = took, i.request.GetInitDuration().AsDuration()
	report.MemoryMB = b.memoryLimit
	report.MaxMemoryMB = min(b.memoryLimit, int((b.peak.Load()+(1<<20)-1)>>20))
	resp := &agentv1.InvokeResponse{
		Payload: i.payload, Streamed: i.streamed, LogTail: b.logs.End(report),
		Report: &mayflyv1.InvocationReport{
			Duration: durationpb.New(took), InitDuration: i.request.GetInitDuration(),
			MemoryMb: int32(report.MemoryMB), MaxMemoryUsedMb: int32(report.MaxMemoryMB), // megabytes
		},
	}
	if i.errorType != "" {
		resp.FunctionError = unhandled
	}
	return resp
}

// broken ends an invocation that has no answer; the sandbox ends with it.
func (i *invocation) broken(sent bool, err error) (*agentv1.InvokeResponse, error) {
	b := i.box
	exit, exited := errors.AsType[*exitError](err)
	switch {
	case !sent:
		b.step(sandbox.Event{Kind: sandbox.EventSendFailed, Attempt: i.attempt.number})
	case exited:
		b.functionExited(i.attempt, exit.Status)
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.step(sandbox.Event{Kind: sandbox.EventTimeout, Epoch: i.epoch})
	case errors.Is(err, errProtocol):
		b.agent.log.Error("a runtime broke the frame protocol", "sandbox", b.id, "function", b.spec.GetFunction())
		b.end("its runtime broke the frame protocol")
	default:
		b.disconnected(i.attempt)
	}
	took := time.Since(i.start)
	m := b.machine()
	switch {
	case !sent:
		b.logs.Abort()
		b.agent.metrics.notSent.Inc()
		return nil, sandboxGone(i.request, "its process has gone")
	case errors.Is(err, errProtocol):
		return i.failed(took, failure{errorExit, "Runtime exited without providing a reason", statusError}), nil
	case exited && exit.Exit.Error != nil:
		return i.failed(took, failure{exit.Exit.Error.Type, strings.TrimPrefix(exit.Exit.Error.Message, "Error: "), statusError}), nil
	case m.Last == sandbox.OutcomeLost:
		b.logs.End(logs.Report{Duration: took, MemoryMB: b.memoryLimit, Status: "error"})
		b.agent.metrics.lost.Inc()
		return nil, fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST,
			"sandbox %s was destroyed while request %s ran; whether it has finished is unknown", i.request.GetSandboxId(), i.request.GetRequestId())
	}
	return i.failed(took, failureOf(m, b.spec.GetTimeout().AsDuration())), nil
}

// failed answers for a function whose process can't.
func (i *invocation) failed(took time.Duration, f failure) *agentv1.InvokeResponse {
	b := i.box
	id := i.request.GetRequestId()
	if f.kind == errorOutOfMemory {
		b.notePeak(b.spec.GetMemoryBytes())
	}
	b.logs.Notice(f.logLine(id))
	i.payload, i.errorType = f.payload(id), f.kind
	report := logs.Report{Status: f.status}
	if f.status == statusError {
		report.ErrorType = f.kind
	}
	resp := i.response(took, report)
	resp.SandboxGone = true
	b.agent.metrics.broken.WithLabelValues(f.kind).Inc()
	return resp
}
