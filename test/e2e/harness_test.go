package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	readyWithin = 60 * time.Second
	stopWithin  = 30 * time.Second
)

// binary is the mayfly under test, runtimesDir the images that all instances share.
var (
	binary      string
	runtimesDir string
	shared      *instance
	outside     *networks
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests run sandboxes: run them as root")
	}
	if os.Getenv(inOwnNetwork) == "" {
		if err := prepare(); err != nil {
			return 1, err
		}
		return runApart()
	}
	binary, runtimesDir = os.Getenv("MAYFLY_BIN"), os.Getenv("MAYFLY_RUNTIMES_DIR")
	beyond, err := makeOutside()
	if err != nil {
		return 1, fmt.Errorf("make networks: %w", err)
	}
	outside = beyond
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if shared, err = start(dir); err != nil {
		return 1, err
	}
	code := m.Run()
	return code, errors.Join(shared.tearDown(), outside.nothingLeft())
}

// prepare finds or builds the binary and the runtime images.
func prepare() error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	if binary = os.Getenv("MAYFLY_BIN"); binary == "" {
		binary = filepath.Join(root, "bin", "mayfly")
		if err := command(root, "make", "build"); err != nil {
			return err
		}
	}
	if runtimesDir = os.Getenv("MAYFLY_RUNTIMES_DIR"); runtimesDir == "" {
		runtimesDir = "/var/cache/mayfly/runtimes"
	}
	return command(root, binary, "runtime", "build", "--all", "--runtimes-dir", runtimesDir)
}

func command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// instance is a running Mayfly of the tests' own: state, addresses and processes.
type instance struct {
	dir             string
	api, http, raft string
	config          string
	mu              sync.Mutex
	up              *process
	key             adminKey
	conn            *grpc.ClientConn
	extra           []string
}

type adminKey struct {
	ID, Secret, CA, Endpoint string
}

type process struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan error
}

func startProcess(logPath string, env []string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, env
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, done: make(chan error, 1)}
	go func() { p.done <- cmd.Wait(); log.Close() }()
	return p, nil
}

// stop ends the process by signal and waits for it.
func (p *process) stop(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopWithin):
		_ = p.cmd.Process.Kill()
		return fmt.Errorf("%s did not stop within %s of %s", p.cmd.Args[1], stopWithin, sig)
	}
}

// start runs `mayfly up` below dir with extra flags and waits until it is ready.
func start(dir string, extra ...string) (*instance, error) {
	in := &instance{dir: dir, api: freeAddress(), http: freeAddress(), raft: freeAddress(), config: filepath.Join(dir, "config"), extra: extra}
	if err := in.launch(); err != nil {
		return nil, err
	}
	return in, in.connect()
}

func (in *instance) launch() error {
	args := append([]string{"up"}, in.flags()...)
	p, err := startProcess(in.logPath(), in.env(), append(args, in.extra...)...)
	if err != nil {
		return err
	}
	in.mu.Lock()
	in.up = p
	in.mu.Unlock()
	return in.waitReady(p)
}

func (in *instance) flags() []string {
	return []string{
		"--state-dir", filepath.Join(in.dir, "state"), "--run-dir", filepath.Join(in.dir, "run"), "--runtimes-dir", runtimesDir,
		"--api-address", in.api, "--http-address", in.http, "--raft-address", in.raft,
	}
}

func (in *instance) logPath() string { return filepath.Join(in.dir, "mayfly.log") }

func (in *instance) env() []string {
	return append(os.Environ(), "XDG_CONFIG_HOME="+in.config, "NO_COLOR=1")
}

func (in *instance) waitReady(p *process) error {
	for deadline := time.Now().Add(readyWithin); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-p.done:
			p.done <- err
			return fmt.Errorf("mayfly ended (%w):\n%s", err, in.logTail())
		default:
		}
		resp, err := http.Get("http://" + in.http + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
	return fmt.Errorf("mayfly is not ready after %s:\n%s", readyWithin, in.logTail())
}

func (in *instance) logTail() string {
	data, _ := os.ReadFile(in.logPath())
	return string(data[max(0, len(data)-8000):])
}

// connect reads the admin key that the server left for its own machine, and makes a CLI context of it.
func (in *instance) connect() error {
	path := filepath.Join(in.dir, "state", "server", "admin.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &in.key); err != nil {
		return err
	}
	if in.conn, err = in.dial(in.key.ID, in.key.Secret); err != nil {
		return err
	}
	_, stderr, code := in.cli("", "context", "import", path)
	if code != 0 {
		return fmt.Errorf("context import: %s", stderr)
	}
	return nil
}

// dial connects to the API with a key; empty: without one.
func (in *instance) dial(id, secret string) (*grpc.ClientConn, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(in.key.CA)) {
		return nil, errors.New("admin.json has no CA")
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
	}
	if id != "" {
		bearer := "Bearer " + id + ":" + secret
		opts = append(opts,
			grpc.WithUnaryInterceptor(func(ctx context.Context, m string, req, reply any, cc *grpc.ClientConn, inv grpc.UnaryInvoker, o ...grpc.CallOption) error {
				return inv(metadata.AppendToOutgoingContext(ctx, "authorization", bearer), m, req, reply, cc, o...)
			}),
			grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, s grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
				return s(metadata.AppendToOutgoingContext(ctx, "authorization", bearer), d, cc, m, o...)
			}))
	}
	return grpc.NewClient(in.api, opts...)
}

// cli runs a mayfly command with the instance's context and returns what it printed and its exit code.
func (in *instance) cli(stdin string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(binary, args...)
	cmd.Env = in.env()
	cmd.Stdin = strings.NewReader(stdin)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	exit, isExit := errors.AsType[*exec.ExitError](err)
	switch {
	case isExit:
		code = exit.ExitCode()
	case err != nil:
		return "", err.Error(), -1
	}
	return o.String(), e.String(), code
}

// mustCLI is cli for commands that must succeed.
func (in *instance) mustCLI(t testing.TB, args ...string) string {
	t.Helper()
	out, stderr, code := in.cli("", args...)
	if code != 0 {
		t.Fatalf("mayfly %s: exit %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// kill is kill -9 of the whole of `mayfly up`.
func (in *instance) kill() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.up.stop(syscall.SIGKILL)
}

// tearDown stops the instance as `make down` does.
func (in *instance) tearDown() error {
	if in.conn != nil {
		in.conn.Close()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	err := in.up.stop(syscall.SIGTERM)
	_, stderr, code := in.cli("", "down", "--state-dir", filepath.Join(in.dir, "state"), "--run-dir", filepath.Join(in.dir, "run"))
	if code != 0 {
		err = errors.Join(err, fmt.Errorf("mayfly down: %s", stderr))
	}
	return err
}

// own starts an instance for one test alone.
func own(t *testing.T, extra ...string) *instance {
	t.Helper()
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	in, err := start(dir, extra...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(in.logTail())
		}
		if err := in.tearDown(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (in *instance) functions() mayflyv1.FunctionServiceClient {
	return mayflyv1.NewFunctionServiceClient(in.conn)
}

func (in *instance) invocations() mayflyv1.InvocationServiceClient {
	return mayflyv1.NewInvocationServiceClient(in.conn)
}

// zipOf packs files by name.
func zipOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, content := range files {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// function is a function to be made by a test.
type function struct {
	name, runtime, handler string
	files                  map[string]string
	timeout                time.Duration
	memoryMB               int32
	env                    map[string]string
	url                    *mayflyv1.FunctionUrl
	egress                 mayflyv1.EgressPolicy
}

// python is a function whose module is source, with the handler named "handler".
func python(name, source string) function {
	return function{name: name, runtime: "python3.11", handler: "main.handler", files: map[string]string{"main.py": source}}
}

// deploy creates f, waits until it is Active and deletes it after the test.
func (in *instance) deploy(t testing.TB, f function) {
	t.Helper()
	if f.timeout == 0 {
		f.timeout = 10 * time.Second
	}
	ctx := t.Context()
	_, err := in.functions().CreateFunction(ctx, &mayflyv1.CreateFunctionRequest{
		Name: f.name, Url: f.url,
		Configuration: &mayflyv1.FunctionConfiguration{
			Runtime: f.runtime, Handler: f.handler, MemoryMb: f.memoryMB, Timeout: durationpb.New(f.timeout), Environment: f.env,
			Egress: f.egress,
		},
		Code: &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: zipOf(t, f.files)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = in.functions().DeleteFunction(context.Background(), &mayflyv1.DeleteFunctionRequest{Name: f.name})
	})
	in.waitActive(t, f.name)
}

func (in *instance) waitActive(t testing.TB, name string) *mayflyv1.Function {
	t.Helper()
	for deadline := time.Now().Add(readyWithin); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		got, err := in.functions().GetFunction(t.Context(), &mayflyv1.GetFunctionRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		switch got.GetFunction().GetState() {
		case mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE:
			return got.GetFunction()
		case mayflyv1.FunctionState_FUNCTION_STATE_FAILED:
			t.Fatalf("%s is Failed: %s", name, got.GetFunction().GetStateReason())
		}
	}
	t.Fatalf("%s is not Active after %s", name, readyWithin)
	return nil
}

// invoke calls a function with payload and fails the test if the call fails.
func (in *instance) invoke(t testing.TB, name, payload string) *mayflyv1.InvokeResponse {
	t.Helper()
	resp, err := in.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: name, Payload: []byte(payload), LogTail: true})
	if err != nil {
		t.Fatalf("invoke %s: %v", name, err)
	}
	return resp
}

// functionError is what a failed function answers.
type functionError struct {
	ErrorType, ErrorMessage, RequestID string
	StackTrace                         []string
}

// failure invokes a function that must fail and returns its error.
func (in *instance) failure(t testing.TB, name, payload string) functionError {
	t.Helper()
	resp := in.invoke(t, name, payload)
	if resp.GetFunctionError() != "Unhandled" {
		t.Fatalf("function_error is %q, the answer %s", resp.GetFunctionError(), resp.GetPayload())
	}
	var e functionError
	if err := json.Unmarshal(resp.GetPayload(), &e); err != nil {
		t.Fatalf("%s: %v", resp.GetPayload(), err)
	}
	return e
}
