package runtimes

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

// runtimesDirEnv names the directory where all tests keep images between runs; `make test` sets it.
const runtimesDirEnv = "MAYFLY_RUNTIMES_DIR"

func imageCache(tb testing.TB) string {
	tb.Helper()
	if dir := os.Getenv(runtimesDirEnv); dir != "" {
		return dir
	}
	return "/var/cache/mayfly/runtimes"
}

// testImage returns an image as Build makes it.
func testImage(tb testing.TB, name string) *Image {
	tb.Helper()
	images, err := New(Config{Dir: imageCache(tb), Progress: func(e Event) { tb.Logf("%s %s: %s", e.Runtime, e.Stage, e.Text) }})
	if err != nil {
		tb.Fatal(err)
	}
	image, err := images.Build(tb.Context(), name, BuildOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return image
}

// inImage runs a command in an image with files of a test over it: $1 is the image, $2 holds the layer "up" and the
// socket's directory "run", $3 is the user. The mounts are in a namespace of the process's own and end with it.
const inImage = `mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/up,workdir=$2/work" "$2/root" &&
mount --bind "$2/run" "$2/root/run/mayfly" && mount --rbind /proc "$2/root/proc" && root=$2/root user=$3 && shift 3 && exec /usr/sbin/chroot --userspec="$user" "$root" "$@"`

// overImage makes a directory with a layer of files over an image, and a command that runs in it.
func overImage(tb testing.TB, image *Image, user string, files map[string]string, command ...string) (*exec.Cmd, string) {
	tb.Helper()
	home, err := os.MkdirTemp(imageCache(tb), "t-")
	must(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(home) })
	for _, dir := range []string{"up/run/mayfly", "run", "work", "root"} {
		must(tb, os.MkdirAll(filepath.Join(home, dir), 0o755))
	}
	for name, text := range files {
		path := filepath.Join(home, "up", name)
		must(tb, os.MkdirAll(filepath.Dir(path), 0o755))
		must(tb, os.WriteFile(path, []byte(text), 0o644))
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", inImage, "sh", image.RootFS, home, user}, command...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "TZ=:UTC", "HOME=/tmp", "LAMBDA_TASK_ROOT=/var/task", "LAMBDA_RUNTIME_DIR=/var/runtime"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd, home
}

// process is a bootstrap that runs in its image, as the function's user.
type process struct {
	tb   testing.TB
	cmd  *exec.Cmd
	conn net.Conn
	log  *os.File
	read int64
	once sync.Once
	code int
}

// start runs the bootstrap of a runtime with files in /var/task and waits for its Hello.
func start(tb testing.TB, name string, files map[string]string) *process {
	tb.Helper()
	layer := map[string]string{}
	for name, text := range files {
		layer["var/task/"+name] = text
	}
	image := testImage(tb, name)
	cmd, home := overImage(tb, image, "1000:1000", layer, image.Command...)
	p := &process{tb: tb, cmd: cmd}
	l, err := net.Listen("unix", filepath.Join(home, "run/agent.sock"))
	must(tb, err)
	defer l.Close()
	must(tb, os.Chmod(filepath.Join(home, "run/agent.sock"), 0o777))
	p.log, err = os.OpenFile(filepath.Join(home, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	must(tb, err)
	p.run()
	must(tb, l.(*net.UnixListener).SetDeadline(time.Now().Add(time.Minute)))
	p.conn, err = l.Accept()
	if err != nil {
		tb.Fatalf("%v; log: %s", err, p.newLog())
	}
	p.expectHello(name)
	return p
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (p *process) run() {
	p.tb.Helper()
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	must(p.tb, p.cmd.Start())
	p.tb.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		p.wait()
		if p.conn != nil {
			_ = p.conn.Close()
		}
		_ = p.log.Close()
	})
}

// wait returns the exit status.
func (p *process) wait() int {
	p.once.Do(func() {
		stuck := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
		_ = p.cmd.Wait()
		stuck.Stop()
		p.code = p.cmd.ProcessState.ExitCode()
	})
	return p.code
}

// newLog is what the process wrote since the last call.
func (p *process) newLog() string {
	p.tb.Helper()
	b, err := os.ReadFile(p.log.Name())
	must(p.tb, err)
	text := string(b[p.read:])
	p.read = int64(len(b))
	return text
}

func (p *process) receive() (frame.Type, []byte) {
	p.tb.Helper()
	must(p.tb, p.conn.SetReadDeadline(time.Now().Add(time.Minute)))
	typ, body, err := frame.Read(p.conn)
	if err != nil {
		p.tb.Fatalf("read frame: %v; log: %s", err, p.newLog())
	}
	return typ, body
}

func (p *process) send(b []byte) {
	p.tb.Helper()
	_, err := p.conn.Write(b)
	must(p.tb, err)
}

func (p *process) expectHello(runtime string) {
	p.tb.Helper()
	typ, body := p.receive()
	var hello frame.Hello
	must(p.tb, json.Unmarshal(body, &hello))
	if typ != frame.TypeHello || hello != (frame.Hello{Protocol: 1, Runtime: runtime}) {
		p.tb.Fatalf("got frame %d %s", typ, body)
	}
}

// load sends Load and returns the answer.
func (p *process) load(handler string, env map[string]string) (frame.Type, []byte) {
	p.tb.Helper()
	body, err := json.Marshal(frame.Load{
		Handler: handler, TaskRoot: "/var/task", Env: env, FunctionName: "fn", FunctionVersion: "$LATEST",
		MemoryLimitMB: 128, LogGroup: "/aws/lambda/fn", LogStream: "2026/01/02/[$LATEST]abc",
	})
	must(p.tb, err)
	p.send(frame.Append(nil, frame.TypeLoad, body))
	return p.receive()
}

func (p *process) mustLoad(handler string) *process {
	p.tb.Helper()
	if typ, body := p.load(handler, nil); typ != frame.TypeReady {
		p.tb.Fatalf("load answered %d %s; log: %s", typ, body, p.newLog())
	}
	return p
}

func (p *process) sendInvoke(call frame.Invoke, event string) {
	p.tb.Helper()
	if call.RequestID == "" {
		call.RequestID = "req-1"
	}
	if call.DeadlineMS == 0 {
		call.DeadlineMS = time.Now().Add(30 * time.Second).UnixMilli()
	}
	call.ARN = "arn:aws:lambda:us-east-1:000000000000:function:fn"
	meta, err := json.Marshal(call)
	must(p.tb, err)
	p.send(append(frame.AppendInvoke(nil, meta, len(event)), event...))
}

func (p *process) invoke(event string) (frame.Type, []byte) {
	p.tb.Helper()
	p.sendInvoke(frame.Invoke{}, event)
	return p.receive()
}

// result invokes and expects a result.
func (p *process) result(event string) string {
	p.tb.Helper()
	typ, body := p.invoke(event)
	if typ != frame.TypeResult {
		p.tb.Fatalf("got frame %d %s; log: %s", typ, body, p.newLog())
	}
	return string(body)
}

// functionError is the error of a function, with what bootstraps add to frame.Error.
type functionError struct {
	frame.Error
	Trace     []string `json:"trace"`
	RequestID string   `json:"requestId"`
}

func decodeError(tb testing.TB, typ, want frame.Type, body []byte) functionError {
	tb.Helper()
	var e functionError
	if typ != want {
		tb.Fatalf("got frame %d %s, want %d", typ, body, want)
	}
	must(tb, json.Unmarshal(body, &e))
	return e
}

// failure invokes and expects an error.
func (p *process) failure(event string) functionError {
	p.tb.Helper()
	typ, body := p.invoke(event)
	return decodeError(p.tb, typ, frame.TypeError, body)
}

// stream reads a streamed answer to its end.
func (p *process) stream() (begin frame.StreamBegin, data string, end []byte) {
	p.tb.Helper()
	typ, body := p.receive()
	if typ != frame.TypeStreamBegin {
		p.tb.Fatalf("got frame %d %s, want StreamBegin", typ, body)
	}
	must(p.tb, json.Unmarshal(body, &begin))
	var all strings.Builder
	for {
		typ, body = p.receive()
		switch typ {
		case frame.TypeStream:
			all.Write(body)
		case frame.TypeStreamEnd:
			return begin, all.String(), body
		default:
			p.tb.Fatalf("got frame %d in a stream", typ)
		}
	}
}

func wantContains(tb testing.TB, text string, parts ...string) {
	tb.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			tb.Errorf("%q is missing in: %s", part, text)
		}
	}
}

func wantEqual(tb testing.TB, got, want any) {
	tb.Helper()
	if g, w := fmt.Sprintf("%#v", got), fmt.Sprintf("%#v", want); g != w {
		tb.Errorf("got %s, want %s", g, w)
	}
}
