package api_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/mayfly-faas/mayfly/controlplane/api"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestHealthAndReflectionNeedNoKey(t *testing.T) {
	b := newBench(t)
	conn := b.dial()
	health, err := healthv1.NewHealthClient(conn).Check(testContext(t), &healthv1.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", health, err)
	}
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range response.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, name := range []string{"Function", "Version", "Alias", "Invocation", "Log", "Node", "AccessKey", "Namespace", "Cluster"} {
		if !strings.Contains(strings.Join(names, " "), "mayfly.v1."+name+"Service") {
			t.Errorf("%sService is not served: %v", name, names)
		}
	}
}

// session is a service of nodes: it serves nobody, but tells who got in.
type session struct {
	agentv1.UnimplementedSessionServiceServer
}

type nodeKey struct{}

func (session) FetchBlob(_ *agentv1.FetchBlobRequest, stream grpc.ServerStreamingServer[agentv1.FetchBlobResponse]) error {
	node, _ := stream.Context().Value(nodeKey{}).(string)
	return stream.Send(&agentv1.FetchBlobResponse{Chunk: []byte(node)})
}

func TestServicesWithTheirOwnProof(t *testing.T) {
	isNode := false
	b := newBench(t, api.Service{
		Name:     agentv1.SessionService_ServiceDesc.ServiceName,
		Register: func(s grpc.ServiceRegistrar) { agentv1.RegisterSessionServiceServer(s, session{}) },
		Authenticate: func(ctx context.Context) (context.Context, error) {
			if !isNode {
				return nil, fault.New(codes.Unauthenticated, unauthenticated, "no certificate")
			}
			return context.WithValue(ctx, nodeKey{}, "worker-1"), nil
		},
	})
	fetch := func(c *client) (string, error) {
		stream, err := agentv1.NewSessionServiceClient(c.conn).FetchBlob(testContext(t), &agentv1.FetchBlobRequest{})
		if err != nil {
			t.Fatal(err)
		}
		response, err := stream.Recv()
		return string(response.GetChunk()), err
	}
	_, err := fetch(b.admin)
	wantReason(t, "an admin's key", err, unauthenticated, "certificate")
	isNode = true
	if got, err := fetch(clientOf(b.dial(), "")); err != nil || got != "worker-1" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestUnexpectedErrorsStayInTheLog(t *testing.T) {
	b := newBench(t)
	for name, do := range map[string]func() error{
		"plain":    func() error { return fmt.Errorf("secret of %s", "the disk") },
		"internal": func() error { return fault.Internal(errors.New("secret of the disk"), "the answer was lost") },
		"panic":    func() error { panic("secret of the disk") },
	} {
		b.invoker.do = func(context.Context, *api.Invocation, func([]byte) error) (*mayflyv1.InvokeResponse, error) {
			return nil, do()
		}
		before := strings.Count(b.log.String(), "secret of the disk")
		for way, call := range map[string]func() error{
			"unary": func() error {
				return second(b.admin.invoke.Invoke(testContext(t), &mayflyv1.InvokeRequest{Function: "f"}))
			},
			"stream": func() error {
				_, _, err := invokeStream(t, b.admin, &mayflyv1.InvokeRequest{Function: "f"})
				return err
			},
		} {
			err := call()
			if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "request ") {
				t.Errorf("%s, %s: %v", name, way, err)
			}
			wantReason(t, name, err, mayflyv1.ErrorReason_ERROR_REASON_INTERNAL)
			id := strings.Fields(strings.SplitAfter(fault.From(err).Message, "(request ")[1])[0]
			if strings.Count(b.log.String(), strings.TrimSuffix(id, ";")) != 1 {
				t.Errorf("%s, %s: the id %s is not in the log once", name, way, id)
			}
		}
		if got := strings.Count(b.log.String(), "secret of the disk") - before; got != 2 {
			t.Errorf("%s: logged %d times for 2 calls", name, got)
		}
	}
	// The server lives on, and expected errors are not logged.
	size := len(b.log.String())
	_, err := b.admin.function.GetFunction(testContext(t), &mayflyv1.GetFunctionRequest{Name: "f"})
	wantReason(t, "after panics", err, noFunction)
	if len(b.log.String()) != size {
		t.Error("an expected error was logged")
	}
}

func TestNewWantsItsParts(t *testing.T) {
	if _, err := api.New(api.Config{}); err == nil {
		t.Error("made without anything")
	}
	if _, err := api.NewServer(api.ServerConfig{Services: []api.Service{{Name: "x"}}}); err == nil {
		t.Error("a service without authentication was taken")
	}
}

func TestUnknownMethod(t *testing.T) {
	b := newBench(t)
	err := b.admin.conn.Invoke(testContext(t), "/mayfly.v1.FunctionService/Explode", &mayflyv1.GetFunctionRequest{}, &mayflyv1.GetFunctionResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}
