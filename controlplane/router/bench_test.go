package router

import (
	"context"
	"testing"
	"time"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func benchmarkWarm(b *testing.B, parallel int) {
	g := newRig(b, func(c *Config) { c.LeaseIdle = time.Hour })
	g.state.put(active("f", 1))
	resp := &agentv1.InvokeResponse{Payload: []byte("{}"), Report: &mayflyv1.InvocationReport{}}
	g.home.invoke = func(*fakeLease, *agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
		return resp, nil
	}
	req := &Request{Namespace: "default", Function: "f", Payload: []byte("{}"), RequestID: "id", TraceID: "trace"}
	b.ReportAllocs()
	b.SetParallelism(max(1, parallel/2))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := g.Invoke(context.Background(), req, nil); err != nil {
				b.Error(err)
			}
		}
	})
	g.close()
}

func BenchmarkInvokeWarm32(b *testing.B) { benchmarkWarm(b, 32) }

func BenchmarkInvokeWarm1(b *testing.B) {
	g := newRig(b, func(c *Config) { c.LeaseIdle = time.Hour })
	g.state.put(active("f", 1))
	resp := &agentv1.InvokeResponse{Payload: []byte("{}"), Report: &mayflyv1.InvocationReport{}}
	g.home.invoke = func(*fakeLease, *agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
		return resp, nil
	}
	req := &Request{Namespace: "default", Function: "f", Payload: []byte("{}"), RequestID: "id", TraceID: "trace"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Invoke(context.Background(), req, nil); err != nil {
			b.Fatal(err)
		}
	}
	g.close()
}
