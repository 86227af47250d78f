package e2e

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// reach tries to connect to each target, HOST:PORT, and answers what came of it.
const reach = `
import json, socket

def handler(event, context):
    found = {}
    for target in event:
        host, port = target.rsplit(":", 1)
        try:
            with socket.create_connection((host, int(port)), timeout=5) as s:
                found[target] = s.recv(100).decode()
        except OSError as e:
            found[target] = f"{type(e).__name__}: {e}"
    return found
`

// listen tells where the sandbox is reachable, and stays so after the invocation.
const listen = `
import socket, threading

server = socket.create_server(("", 9000))

def serve():
    while True:
        conn, _ = server.accept()
        conn.sendall(b"reached")
        conn.close()

threading.Thread(target=serve, daemon=True).start()

def handler(event, context):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(("203.0.113.1", 9))
    return s.getsockname()[0] + ":9000"
`

func answer(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) == 0 {
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(publicAddress).To4())},
		}}
	}
	packed, _ := m.Pack()
	return packed
}

func tryAll(t *testing.T, function string, targets ...string) map[string]string {
	t.Helper()
	payload, err := json.Marshal(targets)
	if err != nil {
		t.Fatal(err)
	}
	resp := shared.invoke(t, function, string(payload))
	var found map[string]string
	if err := json.Unmarshal(resp.GetPayload(), &found); err != nil || len(found) != len(targets) {
		t.Fatalf("%s: %v", resp.GetPayload(), err)
	}
	return found
}

func TestEgressByPolicy(t *testing.T) {
	// A service of the host on all of its addresses.
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("reached"))
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	host := net.JoinHostPort(hostAddress, port)

	neighbour := python("neighbour", listen)
	neighbour.egress = mayflyv1.EgressPolicy_EGRESS_POLICY_ALL
	shared.deploy(t, neighbour)
	var sandbox string
	if err := json.Unmarshal(shared.invoke(t, "neighbour", "null").GetPayload(), &sandbox); err != nil {
		t.Fatal(err)
	}
	public, named, private, metadata := publicAddress+":80", publicName+":80", privateServer+":80", cloudMetadata+":80"
	for policy, reached := range map[mayflyv1.EgressPolicy][]string{
		mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED: {public, named}, // the default is internet
		mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET:    {public, named},
		mayflyv1.EgressPolicy_EGRESS_POLICY_NONE:        {},
		mayflyv1.EgressPolicy_EGRESS_POLICY_ALL:         {public, named, private, metadata, host},
	} {
		t.Run(policy.String(), func(t *testing.T) {
			f := python("reach-"+strings.ToLower(policy.String()[len("EGRESS_POLICY_"):]), reach)
			f.egress, f.timeout = policy, time.Minute
			shared.deploy(t, f)
			for target, got := range tryAll(t, f.name, public, named, private, metadata, host, sandbox) {
				want := false
				for _, r := range reached {
					want = want || r == target
				}
				if (got == "reached") != want {
					t.Errorf("%s: %s, reachable should be %v", target, got, want)
				}
				if strings.Contains(got, "timed out") {
					t.Errorf("%s was not refused at once: %s", target, got)
				}
			}
		})
	}
}

func TestEgressByCommandLine(t *testing.T) {
	shared.deploy(t, python("changing", reach))
	if out := shared.mustCLI(t, "function", "get", "changing"); !strings.Contains(strings.Join(strings.Fields(out), " "), "egress internet") {
		t.Errorf("function get says\n%s", out)
	}
	target := publicAddress + ":80"
	if got := tryAll(t, "changing", target)[target]; got != "reached" {
		t.Errorf("before the change: %s", got)
	}
	shared.mustCLI(t, "function", "update", "changing", "--egress", "none")
	if got := tryAll(t, "changing", target)[target]; got == "reached" {
		t.Error("after the change it is still reached")
	}
	if out := shared.mustCLI(t, "node", "list"); !strings.Contains(out, "EGRESS") || !strings.Contains(out, "ok") {
		t.Errorf("node list says\n%s", out)
	}
}

func TestNamespaceLimitsEgress(t *testing.T) {
	shared.mustCLI(t, "namespace", "update", "default", "--max-egress", "internet")
	defer shared.mustCLI(t, "namespace", "update", "default", "--max-egress", "all")
	shared.deploy(t, python("limited", reach))
	_, stderr, code := shared.cli("", "function", "update", "limited", "--egress", "all")
	if code == 0 || !strings.Contains(stderr, "at most") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
