package e2e

import (
	"bufio"
	"os/exec"
	"strings"
	"testing"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const chatty = `
import os
def handler(event, context):
    print("hello", event.get("who"))
    os.write(1, b"raw line\n")
    os.system("echo from a child")
    return 1
`

func TestLogs(t *testing.T) {
	shared.deploy(t, python("chatty", chatty))
	first := shared.invoke(t, "chatty", `{"who":"Ada"}`)
	second := shared.invoke(t, "chatty", `{"who":"Bob"}`)

	for _, line := range []string{"START RequestId: " + first.GetRequestId() + " Version: $LATEST", "hello Ada", "raw line", "from a child", "END RequestId: " + first.GetRequestId(), "REPORT RequestId: " + first.GetRequestId()} {
		if !strings.Contains(string(first.GetLogTail()), line) {
			t.Errorf("%q is not in the tail:\n%s", line, first.GetLogTail())
		}
	}
	out := shared.mustCLI(t, "logs", "chatty", "--since", "10m", "--request-id", second.GetRequestId())
	if !strings.Contains(out, "hello Bob") || strings.Contains(out, "hello Ada") || !strings.Contains(out, "REPORT") {
		t.Errorf("by request:\n%s", out)
	}
	out = shared.mustCLI(t, "logs", "chatty", "--filter", "hello")
	if strings.Count(out, "\n") != 2 {
		t.Errorf("by text:\n%s", out)
	}
}

func TestLogsFollow(t *testing.T) {
	shared.deploy(t, python("followed", chatty))
	cmd := exec.CommandContext(t.Context(), binary, "logs", "followed", "--follow")
	cmd.Env = shared.env()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		for s := bufio.NewScanner(stdout); s.Scan(); {
			lines <- s.Text()
		}
		close(lines)
	}()
	deadline := time.After(30 * time.Second)
	for call := time.NewTicker(500 * time.Millisecond); ; {
		select {
		case <-call.C:
			shared.invoke(t, "followed", `{"who":"live"}`)
		case line := <-lines:
			if strings.Contains(line, "hello live") {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				return
			}
		case <-deadline:
			t.Fatal("the followed log never showed the invocation")
		}
	}
}

func TestSecondsOfFloodAreCutWithANotice(t *testing.T) {
	f := python("flood", "def handler(e, c):\n    for i in range(300000): print('x' * 100)\n    return 1")
	f.timeout = 60 * time.Second
	shared.deploy(t, f)
	resp := shared.invoke(t, "flood", `{}`)
	if resp.GetFunctionError() != "" || len(resp.GetLogTail()) > 4096 {
		t.Errorf("%s, a tail of %d bytes", resp.GetFunctionError(), len(resp.GetLogTail()))
	}
	stream, err := mayflyv1.NewLogServiceClient(shared.conn).ReadLogs(t.Context(), &mayflyv1.ReadLogsRequest{Function: "flood", RequestId: resp.GetRequestId()})
	if err != nil {
		t.Fatal(err)
	}
	size, platform := 0, ""
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		for _, l := range m.GetLines() {
			size += len(l.GetText())
			if l.GetKind() == mayflyv1.LogKind_LOG_KIND_PLATFORM {
				platform += l.GetText() + "\n"
			}
		}
	}
	if size >= 30<<20 || !strings.Contains(platform, "cut") || !strings.Contains(platform, "REPORT") {
		t.Errorf("%d bytes kept; the platform said:\n%s", size, platform)
	}
}
