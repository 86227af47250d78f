package api_test

import (
	"context"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mayfly-faas/mayfly/controlplane/api"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestInvokePassesTheRequestOn(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	var got api.Invocation
	b.invoker.do = func(_ context.Context, in *api.Invocation, _ func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		got = *in
		return &mayflyv1.InvokeResponse{Payload: in.Payload, LogTail: []byte("log"), RequestId: in.RequestID}, nil
	}
	for name, test := range map[string]struct {
		r    *mayflyv1.InvokeRequest
		want api.Invocation
	}{
		"defaults":   {&mayflyv1.InvokeRequest{Function: "f"}, api.Invocation{Namespace: "default", Function: "f", Payload: []byte("{}")}},
		"version":    {&mayflyv1.InvokeRequest{Function: "f:7", Qualifier: "7"}, api.Invocation{Namespace: "default", Function: "f", Qualifier: "7", Payload: []byte("{}")}},
		"alias":      {&mayflyv1.InvokeRequest{Function: "f", Qualifier: "live"}, api.Invocation{Namespace: "default", Function: "f", Qualifier: "live", Payload: []byte("{}")}},
		"namespace":  {&mayflyv1.InvokeRequest{Namespace: "team", Function: "f"}, api.Invocation{Namespace: "team", Function: "f", Payload: []byte("{}")}},
		"ARN":        {&mayflyv1.InvokeRequest{Function: "arn:aws:lambda:us-east-1:123456789012:function:f:live"}, api.Invocation{Namespace: "team", Function: "f", Qualifier: "live", Payload: []byte("{}")}},
		"short ARN":  {&mayflyv1.InvokeRequest{Function: "123456789012:function:f"}, api.Invocation{Namespace: "team", Function: "f", Payload: []byte("{}")}},
		"everything": {&mayflyv1.InvokeRequest{Function: "f", Payload: []byte(` "x" `), LogTail: true, ClientContext: ` {"a":1}`, TraceId: "Root=1-x", Type: mayflyv1.InvocationType_INVOCATION_TYPE_REQUEST_RESPONSE}, api.Invocation{Namespace: "default", Function: "f", Payload: []byte(` "x" `), LogTail: true, ClientContext: ` {"a":1}`, TraceID: "Root=1-x"}},
	} {
		var header metadata.MD
		response, err := b.admin.invoke.Invoke(testContext(t), test.r, grpc.Header(&header))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if uuid.Validate(got.RequestID) != nil || response.GetRequestId() != got.RequestID || len(header.Get("x-request-id")) != 1 || header.Get("x-request-id")[0] != got.RequestID {
			t.Errorf("%s: request id %q, header %v", name, got.RequestID, header)
		}
		if test.want.TraceID == "" && !regexp.MustCompile(`^Root=1-[0-9a-f]{8}-[0-9a-f]{24}$`).MatchString(got.TraceID) {
			t.Errorf("%s: trace id %q", name, got.TraceID)
		}
		if got.Namespace != test.want.Namespace || got.Function != test.want.Function || got.Qualifier != test.want.Qualifier || string(got.Payload) != string(test.want.Payload) ||
			got.LogTail != test.want.LogTail || got.ClientContext != test.want.ClientContext || test.want.TraceID != "" && got.TraceID != test.want.TraceID || got.Stream {
			t.Errorf("%s: got %+v", name, got)
		}
		if string(response.GetPayload()) != string(test.want.Payload) || string(response.GetLogTail()) != "log" {
			t.Errorf("%s: response %v", name, response)
		}
	}
}

func TestInvokeRefuses(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	b.invoker.do = func(context.Context, *api.Invocation, func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		t.Error("a bad request was passed on")
		return &mayflyv1.InvokeResponse{}, nil
	}
	large := []byte(`"` + strings.Repeat("x", 6_291_555) + `"`)
	for name, test := range map[string]struct {
		r      *mayflyv1.InvokeRequest
		reason mayflyv1.ErrorReason
		words  []string
	}{
		"no function":       {&mayflyv1.InvokeRequest{}, badName, []string{"function"}},
		"bad name":          {&mayflyv1.InvokeRequest{Function: "a b"}, badName, []string{"a b"}},
		"bad ARN":           {&mayflyv1.InvokeRequest{Function: "arn:aws:s3:::bucket"}, badName, []string{"arn:aws:s3:::bucket"}},
		"unknown account":   {&mayflyv1.InvokeRequest{Function: "arn:aws:lambda:us-east-1:999999999999:function:f"}, noNamespace, []string{"999999999999"}},
		"ARN elsewhere":     {&mayflyv1.InvokeRequest{Namespace: "default", Function: "123456789012:function:f"}, invalidArgument, []string{"team", "default"}},
		"unknown namespace": {&mayflyv1.InvokeRequest{Namespace: "nowhere", Function: "f"}, noNamespace, []string{"nowhere"}},
		"bad qualifier":     {&mayflyv1.InvokeRequest{Function: "f", Qualifier: "a/b"}, invalidArgument, []string{"qualifier", "a/b"}},
		"version 0":         {&mayflyv1.InvokeRequest{Function: "f", Qualifier: "0"}, invalidArgument, []string{"0"}},
		"empty qualifier":   {&mayflyv1.InvokeRequest{Function: "f:"}, invalidArgument, []string{"qualifier"}},
		"two qualifiers":    {&mayflyv1.InvokeRequest{Function: "f:1", Qualifier: "2"}, invalidArgument, []string{"1", "2"}},
		"no JSON":           {&mayflyv1.InvokeRequest{Function: "f", Payload: []byte("{oops")}, mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAYLOAD, []string{"payload", "JSON"}},
		"two JSONs":         {&mayflyv1.InvokeRequest{Function: "f", Payload: []byte("{}{}")}, mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAYLOAD, nil},
		"too large":         {&mayflyv1.InvokeRequest{Function: "f", Payload: large}, mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE, []string{"6291557", "6291556"}},
		"type":              {&mayflyv1.InvokeRequest{Function: "f", Type: 9}, invalidArgument, []string{"type"}},
		"client context":    {&mayflyv1.InvokeRequest{Function: "f", ClientContext: "[1]"}, invalidArgument, []string{"client_context"}},
		"no context":        {&mayflyv1.InvokeRequest{Function: "f", ClientContext: "{"}, invalidArgument, []string{"client_context"}},
		"large context":     {&mayflyv1.InvokeRequest{Function: "f", ClientContext: `{"a":"` + strings.Repeat("x", 3583) + `"}`}, invalidArgument, []string{"3583"}},
		"trace id":          {&mayflyv1.InvokeRequest{Function: "f", TraceId: "a\nb"}, invalidArgument, []string{"trace_id"}},
	} {
		_, err := b.admin.invoke.Invoke(testContext(t), test.r)
		wantReason(t, name, err, test.reason, test.words...)
		stream, err := b.admin.invoke.InvokeStream(testContext(t), &mayflyv1.InvokeStreamRequest{Invoke: test.r})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantReason(t, name+", streaming", err, test.reason, test.words...)
	}
}

func TestLargestPayload(t *testing.T) {
	b := newBench(t)
	b.invoker.do = func(_ context.Context, in *api.Invocation, _ func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		return &mayflyv1.InvokeResponse{Payload: in.Payload}, nil
	}
	payload := []byte(`"` + strings.Repeat("x", 6_291_554) + `"`)
	response, err := b.admin.invoke.Invoke(testContext(t), &mayflyv1.InvokeRequest{Function: "f", Payload: payload})
	if err != nil || len(response.GetPayload()) != 6_291_556 {
		t.Fatal(err)
	}
}

func TestDryRun(t *testing.T) {
	b := newBench(t)
	b.invoker.resolve = func(ns, fn, qualifier string) (string, error) {
		if fn != "f" {
			return "", fault.NotFound(noFunction, "no %s/%s:%s", ns, fn, qualifier)
		}
		return "7", nil
	}
	r := &mayflyv1.InvokeRequest{Function: "f", Qualifier: "live", Type: mayflyv1.InvocationType_INVOCATION_TYPE_DRY_RUN}
	response, err := b.admin.invoke.Invoke(testContext(t), r)
	if err != nil || response.GetExecutedVersion() != "7" || response.GetRequestId() == "" || len(response.GetPayload()) != 0 {
		t.Errorf("%v, %v", response, err)
	}
	chunks, complete, err := invokeStream(t, b.admin, r)
	if err != nil || len(chunks) != 0 || complete.GetExecutedVersion() != "7" {
		t.Errorf("%v, %v", complete, err)
	}
	r.Function = "g"
	_, err = b.admin.invoke.Invoke(testContext(t), r)
	wantReason(t, "unknown", err, noFunction, "default/g:live")
}

func invokeStream(t *testing.T, c *client, r *mayflyv1.InvokeRequest) (chunks []string, complete *mayflyv1.InvokeResponse, err error) {
	t.Helper()
	stream, err := c.invoke.InvokeStream(testContext(t), &mayflyv1.InvokeStreamRequest{Invoke: r})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return chunks, complete, nil
		}
		if err != nil {
			return chunks, complete, err
		}
		if complete != nil {
			t.Fatal("more after the last message")
		}
		if m.GetComplete() != nil {
			complete = m.GetComplete()
		} else {
			chunks = append(chunks, string(m.GetChunk()))
		}
	}
}

func TestInvokeStream(t *testing.T) {
	b := newBench(t)
	answers := map[string]func(emit func([]byte) error) (*mayflyv1.InvokeResponse, error){
		"streamed": func(emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
			return &mayflyv1.InvokeResponse{ExecutedVersion: "1"}, errors.Join(emit([]byte("a")), emit([]byte("b")))
		},
		"buffered": func(func([]byte) error) (*mayflyv1.InvokeResponse, error) {
			return &mayflyv1.InvokeResponse{Payload: []byte("whole")}, nil
		},
		"failed": func(func([]byte) error) (*mayflyv1.InvokeResponse, error) {
			return &mayflyv1.InvokeResponse{Payload: []byte(`{"errorMessage":"x"}`), FunctionError: "Unhandled"}, nil
		},
		"broken": func(emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
			if err := emit([]byte("a")); err != nil {
				return nil, err
			}
			return nil, fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST, "lost")
		},
	}
	b.invoker.do = func(_ context.Context, in *api.Invocation, emit func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		if !in.Stream {
			t.Error("Stream is not set")
		}
		return answers[in.Function](emit)
	}
	for name, want := range map[string]struct {
		chunks, payload, functionError string
	}{
		"streamed": {"a|b", "", ""}, "buffered": {"whole", "", ""}, "failed": {"", `{"errorMessage":"x"}`, "Unhandled"},
	} {
		chunks, complete, err := invokeStream(t, b.admin, &mayflyv1.InvokeRequest{Function: name})
		if err != nil || strings.Join(chunks, "|") != want.chunks || string(complete.GetPayload()) != want.payload || complete.GetFunctionError() != want.functionError {
			t.Errorf("%s: %q, %v, %v", name, chunks, complete, err)
		}
	}
	chunks, _, err := invokeStream(t, b.admin, &mayflyv1.InvokeRequest{Function: "broken"})
	wantReason(t, "broken", err, mayflyv1.ErrorReason_ERROR_REASON_NODE_LOST)
	if len(chunks) != 1 {
		t.Errorf("chunks %q", chunks)
	}
}

func TestInvokeEndsWithItsCaller(t *testing.T) {
	b := newBench(t)
	entered, left := make(chan struct{}), make(chan struct{})
	b.invoker.do = func(ctx context.Context, _ *api.Invocation, _ func([]byte) error) (*mayflyv1.InvokeResponse, error) {
		close(entered)
		<-ctx.Done()
		close(left)
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(testContext(t))
	go func() { <-entered; cancel() }()
	_, err := b.admin.invoke.Invoke(ctx, &mayflyv1.InvokeRequest{Function: "f"})
	if status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	<-left
}

func TestReadLogs(t *testing.T) {
	b := newBench(t)
	b.admin.create(t, "f")
	b.fleet.lines = []string{"one", "two"}
	read := func(ctx context.Context, r *mayflyv1.ReadLogsRequest) (lines []string, err error) {
		stream, err := b.admin.log.ReadLogs(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return lines, nil
			}
			if err != nil {
				return lines, err
			}
			for _, line := range m.GetLines() {
				lines = append(lines, line.GetText())
			}
		}
	}
	lines, err := read(testContext(t), &mayflyv1.ReadLogsRequest{Function: "f", Filter: "x", Limit: 5})
	if err != nil || strings.Join(lines, ",") != "one,two" || b.fleet.query.GetNamespace() != "default" || b.fleet.query.GetFilter() != "x" || b.fleet.query.GetLimit() != 5 {
		t.Errorf("%q, %v, query %v", lines, err, b.fleet.query)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	stream, err := b.admin.log.ReadLogs(ctx, &mayflyv1.ReadLogsRequest{Function: "f", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("follow ended with %v", err)
	}
	now := time.Now()
	for name, test := range map[string]struct {
		r      *mayflyv1.ReadLogsRequest
		reason mayflyv1.ErrorReason
	}{
		"unknown":    {&mayflyv1.ReadLogsRequest{Function: "g"}, noFunction},
		"times":      {&mayflyv1.ReadLogsRequest{Function: "f", Since: stamp(now), Until: stamp(now.Add(-time.Second))}, invalidArgument},
		"no time":    {&mayflyv1.ReadLogsRequest{Function: "f", Since: stamp(time.Time{}.Add(-time.Hour))}, invalidArgument},
		"limit":      {&mayflyv1.ReadLogsRequest{Function: "f", Limit: -1}, invalidArgument},
		"filter":     {&mayflyv1.ReadLogsRequest{Function: "f", Filter: strings.Repeat("x", 1025)}, invalidArgument},
		"request id": {&mayflyv1.ReadLogsRequest{Function: "f", RequestId: strings.Repeat("x", 65)}, invalidArgument},
	} {
		_, err := read(testContext(t), test.r)
		wantReason(t, name, err, test.reason)
	}
}
