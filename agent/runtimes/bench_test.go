package runtimes

import (
	"bufio"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// benchmarkRoundTrip measures one small invocation after the other, from the socket's side.
func benchmarkRoundTrip(b *testing.B, p *process) {
	const event = `{"key":"value"}`
	meta := []byte(`{"request_id":"8a1c3e0e-0000-4000-8000-000000000000","deadline_ms":4102444800000,"arn":"arn:aws:lambda:us-east-1:000000000000:function:fn"}`)
	call := append(frame.AppendInvoke(nil, meta, len(event)), event...)
	must(b, p.conn.SetReadDeadline(time.Time{}))
	r := bufio.NewReader(p.conn)
	for b.Loop() {
		if _, err := p.conn.Write(call); err != nil {
			b.Fatal(err)
		}
		if typ, body, err := frame.Read(r); err != nil || typ != frame.TypeResult {
			b.Fatalf("%d %s %v", typ, body, err)
		}
	}
}

func BenchmarkPython(b *testing.B) {
	benchmarkRoundTrip(b, start(b, "python3.11", map[string]string{
		"app.py": "import json\ndef handler(e, c): return {'statusCode': 200, 'body': json.dumps('Hello World!')}\n",
	}).mustLoad("app.handler"))
}

func BenchmarkNode(b *testing.B) {
	benchmarkRoundTrip(b, start(b, "nodejs18", map[string]string{
		"index.js": "exports.handler = async () => ({ statusCode: 200, body: JSON.stringify('Hello World!') });",
	}).mustLoad("index.handler"))
}
