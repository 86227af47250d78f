package runtimetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// FakeOp is a call of a Fake that can be made to fail.
type FakeOp struct {
	Name string // "create", "place", "destroy", "list"
	ID   string
	// After tells that the call has had its effect.
	After bool
}

// FakeAnswer is what a fake function answers: Error if it is set, else Chunks as a stream, else Result.
type FakeAnswer struct {
	Result []byte
	Error  *frame.Error
	Chunks [][]byte
}

// FakeHandler is a function of fake sandboxes.
type FakeHandler func(p *FakeProcess, in frame.Invoke, event []byte) FakeAnswer

// Fake is a sandbox.Runtime in memory, for tests: a sandbox is a goroutine that dials agent.sock and speaks frames. A command
// "exit N" ends with that status instead, and one that finds no socket sleeps until it is killed.
type Fake struct {
	// Handler answers invocations; nil: with the event.
	Handler FakeHandler
	// Init runs at Load; nil: all is well.
	Init func(p *FakeProcess) *frame.Error
	// Ready goes with an init that ended well.
	Ready frame.Ready
	// Shutdown runs when the agent asks for the end; nil: the process ends at once.
	Shutdown func(p *FakeProcess, reason string)
	// Fault may fail a call before or after its effect; nil: none fails.
	Fault func(op FakeOp) error
	// Peak is the memory that Usage tells, in bytes.
	Peak int64

	mu    sync.Mutex
	boxes map[string]*FakeProcess
	all   sync.WaitGroup
}

// FakeProcess is PID 1 of a fake sandbox.
type FakeProcess struct {
	// Context ends when the sandbox is destroyed.
	Context context.Context // it is the life of the process
	Config  sandbox.Config
	// Load is set once the process is loaded.
	Load frame.Load
	// Log is its stdout and stderr.
	Log io.Writer

	kill  context.CancelFunc
	conn  net.Conn
	code  string
	exit  sandbox.Exit
	ended chan struct{}
}

// Exit ends the process; it doesn't return. Call it from a handler.
func (p *FakeProcess) Exit(code int, oom bool) {
	p.exit = sandbox.Exit{Code: code, OOMKilled: oom}
	runtime.Goexit()
}

// Disconnect closes the process's connection to the agent.
func (p *FakeProcess) Disconnect() { _ = p.conn.Close() }

// SendRaw writes bytes to the agent, frames or not.
func (p *FakeProcess) SendRaw(b []byte) { _, _ = p.conn.Write(b) }

// validate refuses what no Runtime can make.
func validate(c sandbox.Config) error {
	if c.ID == "" || filepath.Base(c.ID) != c.ID || c.RootFS == "" || c.SocketDir == "" || len(c.Command) == 0 {
		return fmt.Errorf("sandbox %q: an id, a root file system, a socket directory and a command are required", c.ID)
	}
	if c.MemoryBytes <= 0 || c.MilliCPUs <= 0 || c.PIDs <= 0 {
		return fmt.Errorf("sandbox %q: limits of memory, CPU and processes are required", c.ID)
	}
	if _, err := os.Stat(c.RootFS); err != nil {
		return fmt.Errorf("sandbox %q: %w", c.ID, err)
	}
	return nil
}

func (f *Fake) fault(name, id string, after bool) error {
	if f.Fault == nil {
		return nil
	}
	return f.Fault(FakeOp{Name: name, ID: id, After: after})
}

// Create implements sandbox.Runtime.
func (f *Fake) Create(_ context.Context, c sandbox.Config) error {
	if err := validate(c); err != nil {
		return err
	}
	if err := f.fault("create", c.ID, false); err != nil {
		return err
	}
	f.mu.Lock()
	if f.boxes == nil {
		f.boxes = map[string]*FakeProcess{}
	}
	if _, ok := f.boxes[c.ID]; ok {
		f.mu.Unlock()
		return fmt.Errorf("sandbox %s exists", c.ID)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &FakeProcess{Context: ctx, Config: c, kill: cancel, code: c.CodeDir, ended: make(chan struct{}), exit: sandbox.Exit{Code: 137}}
	f.boxes[c.ID] = p
	f.mu.Unlock()
	f.all.Go(func() { f.run(p) })
	if err := f.fault("create", c.ID, true); err != nil {
		_ = f.remove(c.ID)
		return err
	}
	return nil
}

// PlaceCode implements sandbox.Runtime.
func (f *Fake) PlaceCode(_ context.Context, id, codeDir string) error {
	if err := f.fault("place", id, false); err != nil {
		return err
	}
	p := f.get(id)
	if p == nil {
		return fmt.Errorf("no sandbox %s", id)
	}
	p.code = codeDir
	return f.fault("place", id, true)
}

func (f *Fake) get(id string) *FakeProcess {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.boxes[id]
}

// Wait implements sandbox.Runtime.
func (f *Fake) Wait(ctx context.Context, id string) (sandbox.Exit, error) {
	p := f.get(id)
	if p == nil {
		return sandbox.Exit{}, fmt.Errorf("no sandbox %s", id)
	}
	select {
	case <-p.ended:
		return p.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// Usage implements sandbox.Runtime.
func (f *Fake) Usage(_ context.Context, id string) (sandbox.Usage, error) {
	if f.get(id) == nil {
		return sandbox.Usage{}, fmt.Errorf("no sandbox %s", id)
	}
	return sandbox.Usage{MemoryBytes: f.Peak, PeakMemoryBytes: f.Peak}, nil
}

// Destroy implements sandbox.Runtime.
func (f *Fake) Destroy(_ context.Context, id string) error {
	if err := f.fault("destroy", id, false); err != nil {
		return err
	}
	return errors.Join(f.remove(id), f.fault("destroy", id, true))
}

func (f *Fake) remove(id string) error {
	p := f.get(id)
	if p == nil {
		return nil
	}
	p.kill()
	<-p.ended
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.boxes, id)
	return nil
}

// List implements sandbox.Runtime.
func (f *Fake) List(context.Context) ([]string, error) {
	if err := f.fault("list", "", false); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for id := range f.boxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// Kill ends a sandbox's PID 1 from outside, as kill -9 would.
func (f *Fake) Kill(id string) {
	if p := f.get(id); p != nil {
		p.kill()
		<-p.ended
	}
}

// Close waits until no process runs; destroy all sandboxes before.
func (f *Fake) Close() { f.all.Wait() }

func (f *Fake) run(p *FakeProcess) {
	defer close(p.ended)
	defer p.kill()
	defer func() { p.exit.Time = time.Now() }()
	if p.Config.Command[0] == "exit" {
		code, _ := strconv.Atoi(p.Config.Command[len(p.Config.Command)-1])
		p.Exit(code, false)
	}
	conn, err := net.Dial("unix", filepath.Join(p.Config.SocketDir, "agent.sock"))
	if err != nil {
		<-p.Context.Done()
		return
	}
	p.conn = conn
	defer conn.Close()
	stop := context.AfterFunc(p.Context, func() { _ = conn.Close() })
	defer stop()
	log, err := os.OpenFile(filepath.Join(p.Config.SocketDir, "log"), os.O_WRONLY, 0)
	if err == nil {
		defer log.Close()
		p.Log = log
	} else {
		p.Log = io.Discard
	}
	f.speak(p)
}

func (f *Fake) speak(p *FakeProcess) {
	p.send(frame.TypeHello, frame.Hello{Protocol: 1, Runtime: "fake"})
	in := bufio.NewReader(p.conn)
	for {
		t, body, err := frame.Read(in)
		if err != nil {
			if p.Context.Err() == nil {
				<-p.Context.Done() // disconnected, but alive
			}
			return
		}
		switch t {
		case frame.TypeLoad:
			f.load(p, body)
		case frame.TypeInvoke:
			f.invoke(p, body)
		case frame.TypeShutdown:
			f.shutdown(p, body)
			return
		}
	}
}

func (p *FakeProcess) send(t frame.Type, v any) {
	body, _ := json.Marshal(v) // plain structs
	p.SendRaw(frame.Append(nil, t, body))
}

func (f *Fake) load(p *FakeProcess, body []byte) {
	_ = json.Unmarshal(body, &p.Load)
	if f.Init != nil {
		if e := f.Init(p); e != nil {
			p.send(frame.TypeInitError, e)
			p.Exit(1, false)
		}
	}
	if f.Ready != (frame.Ready{}) {
		p.send(frame.TypeReady, f.Ready)
		return
	}
	p.SendRaw(frame.Append(nil, frame.TypeReady, nil))
}

func (f *Fake) shutdown(p *FakeProcess, body []byte) {
	if f.Shutdown == nil {
		return
	}
	var in frame.Shutdown
	_ = json.Unmarshal(body, &in)
	f.Shutdown(p, in.Reason)
}

func (f *Fake) invoke(p *FakeProcess, body []byte) {
	meta, event, err := frame.SplitInvoke(body)
	var in frame.Invoke
	if err != nil || json.Unmarshal(meta, &in) != nil {
		p.Exit(70, false)
	}
	if f.Handler == nil {
		p.SendRaw(frame.Append(nil, frame.TypeResult, event))
		return
	}
	p.answer(f.Handler(p, in, event))
}

func (p *FakeProcess) answer(a FakeAnswer) {
	switch {
	case a.Chunks != nil:
		p.send(frame.TypeStreamBegin, frame.StreamBegin{})
		for _, c := range a.Chunks {
			p.SendRaw(frame.Append(nil, frame.TypeStream, c))
		}
		if a.Error != nil {
			p.send(frame.TypeStreamEnd, a.Error)
			return
		}
		p.SendRaw(frame.Append(nil, frame.TypeStreamEnd, nil))
	case a.Error != nil:
		p.send(frame.TypeError, a.Error)
	default:
		p.SendRaw(frame.Append(nil, frame.TypeResult, a.Result))
	}
}
