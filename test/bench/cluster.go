package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	startTimeout = 90 * time.Second
	stopTimeout  = 60 * time.Second
)

// functionCode answers answerBody through a function URL.
const functionCode = `import json

def hello_world(event, context):
    return {"statusCode": 200, "body": json.dumps("Hello World!")}
`

// cluster is Mayfly processes with state and ports of their own.
type cluster struct {
	o   options
	log io.Writer
	// dir holds everything; nodes are the directories of state and sockets that "mayfly down" takes.
	dir       string
	nodes     []node
	processes []*process
	httpURL   string
	env       []string
}

type node struct{ state, run string }

type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	// ended is closed once exit is set.
	ended chan struct{}
	exit  error
}

// startUp starts server and agent in one process.
func startUp(ctx context.Context, o options, log io.Writer) (*cluster, error) {
	c, err := newCluster(o, log)
	if err != nil {
		return c, err
	}
	args, err := c.serverArgs("up", c.node("n"))
	if err != nil {
		return c, err
	}
	return c, c.serve(ctx, append(args, "--runtimes-dir", o.runtimesDir))
}

// startSplit starts server and agent in processes of their own.
func startSplit(ctx context.Context, o options, log io.Writer) (*cluster, error) {
	c, err := newCluster(o, log)
	if err != nil {
		return c, err
	}
	args, err := c.serverArgs("server", c.node("s"))
	if err != nil {
		return c, err
	}
	if err := c.serve(ctx, args); err != nil {
		return c, err
	}
	identity := filepath.Join(c.dir, "identity")
	if _, err := c.mayfly(ctx, "node", "enroll", "worker", "--identity", identity); err != nil {
		return c, err
	}
	n := c.node("a")
	return c, c.start("agent", "agent", "--server", c.endpoint(), "--identity", identity, "--node-name", "worker",
		"--state-dir", n.state, "--run-dir", n.run, "--runtimes-dir", o.runtimesDir)
}

func newCluster(o options, log io.Writer) (*cluster, error) {
	c := &cluster{o: o, log: log}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return c, fmt.Errorf("find %s: %w", o.binary, err)
	}
	c.o.binary = binary
	if _, err := os.Stat(binary); err != nil {
		return c, fmt.Errorf("there is no %s: run `make build` first, or name it with -mayfly: %w", o.binary, err)
	}
	// Paths of sockets must be short.
	if c.dir, err = os.MkdirTemp("/tmp", "mfb"); err != nil {
		return c, fmt.Errorf("make a directory: %w", err)
	}
	// Functions must traverse it, so that they can read their code.
	if err := os.Chmod(c.dir, 0o711); err != nil {
		return c, fmt.Errorf("make a directory: %w", err)
	}
	code := filepath.Join(c.dir, "hello.py")
	return c, os.WriteFile(code, []byte(functionCode), 0o644)
}

func (c *cluster) node(name string) node {
	n := node{state: filepath.Join(c.dir, name+"-state"), run: filepath.Join(c.dir, name)}
	c.nodes = append(c.nodes, n)
	return n
}

func (c *cluster) serverArgs(command string, n node) ([]string, error) {
	args := []string{command, "--state-dir", n.state, "--run-dir", n.run}
	for _, flag := range []string{"--api-address", "--http-address", "--raft-address"} {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		args = append(args, flag, address)
		if flag == "--http-address" {
			c.httpURL = "http://" + address
		}
	}
	return args, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// serve starts a server and waits until it is ready and has left its admin key.
func (c *cluster) serve(ctx context.Context, args []string) error {
	if err := c.start(args[0], args...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	admin := filepath.Join(c.nodes[0].state, "server", "admin.json")
	for {
		err := c.ready(ctx)
		if err == nil {
			err = c.login(admin)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return c.explain(fmt.Errorf("mayfly %s is not ready after %v: %w", args[0], startTimeout, err))
		case <-c.processes[0].ended:
			return c.explain(fmt.Errorf("mayfly %s ended: %w", args[0], errors.Join(c.processes[0].exit, err)))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *cluster) start(name string, args ...string) error {
	p := &process{name: name, log: filepath.Join(c.dir, name+".log"), ended: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return fmt.Errorf("make a log: %w", err)
	}
	defer out.Close()
	p.cmd = exec.Command(c.o.binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// Of a group of its own: an interrupt from the terminal is ours, to stop processes in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start mayfly %s: %w", name, err)
	}
	c.processes = append(c.processes, p)
	go func() {
		p.exit = p.cmd.Wait()
		close(p.ended)
	}()
	return nil
}

func (c *cluster) ready(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.httpURL+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", r.URL, resp.Status)
	}
	return nil
}

// login makes the environment in which the CLI talks to this cluster.
func (c *cluster) login(adminFile string) error {
	b, err := os.ReadFile(adminFile)
	if err != nil {
		return err
	}
	var a struct{ ID, Secret, CA, Endpoint string }
	if err := json.Unmarshal(b, &a); err != nil {
		return fmt.Errorf("read %s: %w", adminFile, err)
	}
	ca := filepath.Join(c.dir, "ca.pem")
	if err := os.WriteFile(ca, []byte(a.CA), 0o644); err != nil {
		return err
	}
	c.env = append(os.Environ(), "HOME="+c.dir, "XDG_CONFIG_HOME="+c.dir, "MAYFLY_CONTEXT=", "MAYFLY_NAMESPACE=",
		"MAYFLY_ENDPOINT="+a.Endpoint, "MAYFLY_CA="+ca, "MAYFLY_ACCESS_KEY="+a.ID+":"+a.Secret)
	return nil
}

func (c *cluster) endpoint() string {
	for _, e := range c.env {
		if v, ok := strings.CutPrefix(e, "MAYFLY_ENDPOINT="); ok {
			return v
		}
	}
	return ""
}

// mayfly runs the CLI and returns what it printed.
func (c *cluster) mayfly(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.o.binary, args...)
	cmd.Env = c.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", c.explain(fmt.Errorf("mayfly %s: %w: %s", strings.Join(args, " "), err, out))
	}
	return string(out), nil
}

// deploy makes the function and returns its URL.
func (c *cluster) deploy(ctx context.Context, name string) (string, error) {
	_, err := c.mayfly(ctx, "deploy", filepath.Join(c.dir, "hello.py"), "--name", name, "--runtime", c.o.runtime,
		"--handler", "hello.hello_world", "--url", "none")
	return c.httpURL + "/fn/" + name + "/", err
}

// explain adds the ends of the processes' logs to an error.
func (c *cluster) explain(err error) error {
	if err == nil {
		return nil
	}
	for _, p := range c.processes {
		if b, readErr := os.ReadFile(p.log); readErr == nil {
			err = fmt.Errorf("%w\n--- end of the log of mayfly %s:\n%s", err, p.name, b[max(0, len(b)-2000):])
		}
	}
	return err
}

// stop ends the processes, last one first, then what they left running, and removes their state.
func (c *cluster) stop() error {
	if c == nil || c.dir == "" {
		return nil
	}
	var errs []error
	for _, p := range slices.Backward(c.processes) {
		errs = append(errs, p.stop())
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for _, n := range c.nodes {
		args := []string{"down", "--state-dir", n.state, "--run-dir", n.run}
		if _, err := os.Stat(n.state); err == nil {
			_, err = c.mayfly(ctx, args...)
			errs = append(errs, err)
		}
	}
	// Removing through a mount that was left would empty the directory behind it.
	errs = append(errs, mountsBelow(c.dir))
	err := errors.Join(errs...)
	if c.o.keep || err != nil {
		fmt.Fprintf(c.log, "state and logs are in %s\n", c.dir)
		return err
	}
	return os.RemoveAll(c.dir)
}

// mountsBelow is an error if something is mounted below dir.
func mountsBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return fmt.Errorf("%s is still mounted: unmount it, then remove %s", f[4], dir)
		}
	}
	return nil
}

func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("mayfly %s did not end within %v and was killed", p.name, stopTimeout)
	}
}
