// Command bootstrap is a custom runtime without any library, which does right or wrong as it is told: by the variable INIT
// before it asks for its first event, then by each event's "do". With the arguments "extension NAME" it is an extension instead.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const largeAnswer = 7 << 20

func api(path string) string {
	return "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/" + path
}

// post returns the status and the errorType of the reply.
func post(path string, header http.Header, trailer http.Header, body io.Reader) string {
	req, err := http.NewRequest(http.MethodPost, api(path), body)
	if err != nil {
		panic(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Trailer = trailer
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var reply struct{ ErrorType, Status string }
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return err.Error()
	}
	return fmt.Sprint(resp.StatusCode, " ", reply.Status, reply.ErrorType)
}

func respond(id, body string) string {
	return post("invocation/"+id+"/response", nil, nil, strings.NewReader(body))
}

func main() {
	if len(os.Args) == 3 {
		extension(os.Args[2])
		return
	}
	switch what := os.Getenv("INIT"); what {
	case "exit":
		os.Exit(3)
	case "hang":
		time.Sleep(time.Hour)
	case "error":
		header := http.Header{"Lambda-Runtime-Function-Error-Type": {"Runtime.NoConfig"}}
		fmt.Println(post("init/error", header, nil, strings.NewReader(`{"errorMessage":"no configuration","stackTrace":[]}`)))
		os.Exit(1)
	case "internal extension":
		registerInternal()
	}
	last := ""
	for {
		resp, err := http.Get(api("invocation/next"))
		if err != nil || resp.StatusCode != http.StatusOK {
			panic(fmt.Sprint("next: ", resp, err))
		}
		event, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			panic(err)
		}
		last = handle(resp.Header, event, last)
	}
}

// handle returns what the next event may ask for.
func handle(header http.Header, event []byte, last string) string {
	id := header.Get("Lambda-Runtime-Aws-Request-Id")
	var in struct {
		Do                    string
		QueryStringParameters map[string]string // of a function URL
	}
	if err := json.Unmarshal(event, &in); err != nil {
		panic(err)
	}
	if in.Do == "" {
		in.Do = in.QueryStringParameters["do"]
	}
	switch in.Do {
	case "exit":
		os.Exit(4)
	case "exit well":
		os.Exit(0)
	case "hang":
		time.Sleep(time.Hour)
	case "last":
		respond(id, quote(last))
	case "print":
		fmt.Println("the function says", id)
		respond(id, `""`)
	case "twice":
		return respond(id, `"first"`) + ", " + respond(id, `"second"`) + ", " + post("invocation/"+id+"/error", nil, nil, strings.NewReader("{}"))
	case "other":
		respond(id, quote(respond("00000000-0000-4000-8000-000000000000", `"stolen"`)))
	case "ask again":
		resp, err := http.Get(api("invocation/next"))
		if err != nil {
			panic(err)
		}
		defer resp.Body.Close()
		respond(id, quote(fmt.Sprint(resp.StatusCode, resp.Header.Get("Lambda-Runtime-Aws-Request-Id") == id)))
	case "garbage":
		respond(id, quote(garbage()))
	case "large":
		return respond(id, `"`+strings.Repeat("x", largeAnswer)+`"`)
	case "half":
		half(id)
	case "error":
		body := `{"errorMessage":"as asked","errorType":"Odd","stackTrace":[{"path":"a.go","line":7}]}`
		return post("invocation/"+id+"/error", http.Header{"Lambda-Runtime-Function-Xray-Error-Cause": {"{}"}}, nil, strings.NewReader(body))
	case "stream", "broken stream":
		return stream(id, in.Do == "broken stream")
	default:
		out, _ := json.Marshal(header)
		respond(id, string(out))
	}
	return ""
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// garbage sends what is no HTTP to the API, and no frame to the agent.
func garbage() string {
	conn, err := net.Dial("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.Write(bytes.Repeat([]byte{0xff, 0, '\n'}, 1000))
	answer, _ := io.ReadAll(conn)
	agent := "refused"
	if c, err := net.Dial("unix", "/run/mayfly/agent.sock"); err == nil {
		c.Write(bytes.Repeat([]byte{0xff}, 1000))
		agent = "open"
		c.Close()
	}
	return strings.Fields(string(answer) + " - -")[1] + " " + agent
}

// half breaks off in the middle of an answer.
func half(id string) {
	conn, err := net.Dial("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"))
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(conn, "POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", id)
	conn.Close()
	time.Sleep(time.Hour)
}

// parts is a body that comes in parts, with trailers at its end.
type parts struct {
	left    []string
	trailer http.Header
	broken  bool
}

func (p *parts) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		if p.broken {
			p.trailer.Set("Lambda-Runtime-Function-Error-Type", "Midstream")
			p.trailer.Set("Lambda-Runtime-Function-Error-Body",
				base64.StdEncoding.EncodeToString([]byte(`{"errorType":"Midstream","errorMessage":"it broke"}`)))
		}
		return 0, io.EOF
	}
	n := copy(b, p.left[0])
	p.left = p.left[1:]
	time.Sleep(50 * time.Millisecond) // so that they travel apart
	return n, nil
}

func stream(id string, broken bool) string {
	p := &parts{
		left:    []string{`{"statusCode":201,"headers":{"x-part":"one"}}` + strings.Repeat("\x00", 8), "one", "two"},
		trailer: http.Header{"Lambda-Runtime-Function-Error-Type": nil, "Lambda-Runtime-Function-Error-Body": nil}, broken: broken,
	}
	header := http.Header{
		"Lambda-Runtime-Function-Response-Mode": {"streaming"}, "Content-Type": {"application/vnd.awslambda.http-integration-response"},
	}
	return post("invocation/"+id+"/response", header, p.trailer, p)
}

// registerInternal makes this process an internal extension as well, which says what it sees.
func registerInternal() {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension/"
	call := func(method, path, name, id, body string) *http.Response {
		req, err := http.NewRequest(method, base+path, strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		req.Header.Set("Lambda-Extension-Name", name)
		req.Header.Set("Lambda-Extension-Identifier", id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			panic(err)
		}
		return resp
	}
	refused := call(http.MethodPost, "register", "inside", "", `{"events":["INVOKE","SHUTDOWN"]}`)
	defer refused.Body.Close()
	fmt.Println("internal SHUTDOWN:", refused.StatusCode)
	resp := call(http.MethodPost, "register", "inside", "", `{"events":["INVOKE"]}`)
	defer resp.Body.Close()
	id := resp.Header.Get("Lambda-Extension-Identifier")
	go func() {
		for {
			event := call(http.MethodGet, "event/next", "", id, "")
			body, _ := io.ReadAll(event.Body)
			event.Body.Close()
			fmt.Println("inside saw", string(body))
		}
	}()
}
