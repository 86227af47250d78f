package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// requestIDHeader is the response header with the call's id, which the log names too.
const requestIDHeader = "x-request-id"

type requestIDKey struct{}

// requestID is the id that the observer gave this call.
func requestID(ctx context.Context) string {
	if id, ok := ctx.Value(requestIDKey{}).(string); ok {
		return id
	}
	return uuid.NewString()
}

// observer is the outermost interceptor: it names each call, counts it, catches panics, and turns errors into statuses.
type observer struct {
	log     *slog.Logger
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

func newObserver(log *slog.Logger, registerer prometheus.Registerer) (*observer, error) {
	o := &observer{
		log: log,
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_api_calls_total", Help: "gRPC calls that ended, by method and code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mayfly_api_call_seconds", Help: "Duration of unary gRPC calls.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
		}, []string{"method"}),
	}
	for _, c := range []prometheus.Collector{o.calls, o.seconds} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the API: %w", err)
		}
	}
	return o, nil
}

func (o *observer) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	start := time.Now()
	ctx, id := named(ctx)
	err = safely(func() (err error) { response, err = handle(ctx, req); return err })
	err = o.end(info.FullMethod, id, err)
	o.seconds.WithLabelValues(info.FullMethod).Observe(time.Since(start).Seconds())
	if err != nil {
		return nil, err
	}
	return response, nil
}

func (o *observer) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, id := named(stream.Context())
	err := safely(func() error { return handle(srv, &namedStream{stream, ctx}) })
	return o.end(info.FullMethod, id, err)
}

type namedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context has the call's id in it.
func (s *namedStream) Context() context.Context { return s.ctx }

func named(ctx context.Context) (context.Context, string) {
	id := uuid.NewString()
	// It fails only once headers were sent, which is the handler's doing, later.
	_ = grpc.SetHeader(ctx, metadata.Pairs(requestIDHeader, id))
	return context.WithValue(ctx, requestIDKey{}, id), id
}

// safely turns a panic into an error with its stack.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Internal(fmt.Errorf("panic: %v\n%s", p, debug.Stack()), "internal error")
		}
	}()
	return f()
}

// end counts a call, logs an error that nobody expected, once, and returns what its caller may see.
func (o *observer) end(method, id string, err error) error {
	st := statusOf(err)
	if st.Code() == codes.Internal || st.Code() == codes.Unknown || st.Code() == codes.DataLoss {
		o.log.Error("a call failed", "method", method, "request_id", id, "error", err)
		e := fault.From(st.Err())
		e.Message = fmt.Sprintf("%s (request %s; the log of the node says more)", e.Message, id)
		st = e.GRPCStatus()
	}
	o.calls.WithLabelValues(method, st.Code().String()).Inc()
	return st.Err()
}

func statusOf(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	e, isFault := errors.AsType[*fault.Error](err)
	switch {
	case isFault && e.Code != codes.Internal:
		return e.GRPCStatus()
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "the caller has gone")
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(codes.DeadlineExceeded, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "the call took longer than its caller would wait").GRPCStatus()
	case isFault:
		return e.GRPCStatus()
	}
	// A status from below, such as of a stream that broke, is no secret; anything else is.
	if st, ok := status.FromError(err); ok {
		return st
	}
	return fault.From(err).GRPCStatus()
}
