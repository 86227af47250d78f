package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"time"
)

// clientSpec is what a client process is to do.
type clientSpec struct {
	// URLs are called in turn; with Once, each once and by one caller.
	URLs    []string
	Callers int
	// Warmup is not measured.
	Warmup, Duration time.Duration
	Once             bool
	// Body is the only right answer, with status 200.
	Body string
}

// sample is what a client measured.
type sample struct {
	// Nanos are the latencies in nanoseconds, in any order.
	Nanos []int64
	// Seconds is how long it measured.
	Seconds float64
}

func clientMain(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	var spec clientSpec
	if err := json.NewDecoder(stdin).Decode(&spec); err != nil {
		return fmt.Errorf("read the client's task: %w", err)
	}
	s, err := call(ctx, spec)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(s)
}

// call does what spec says: a closed loop of callers over kept-alive connections. A wrong answer ends it with an error.
func call(ctx context.Context, spec clientSpec) (sample, error) {
	tr := &http.Transport{MaxIdleConnsPerHost: max(spec.Callers, 1), MaxConnsPerHost: max(spec.Callers, 1), DisableCompression: true}
	defer tr.CloseIdleConnections()
	c := &caller{transport: tr, spec: spec}
	if spec.Once {
		return c.once(ctx)
	}
	if _, err := c.loop(ctx, spec.Warmup); err != nil {
		return sample{}, fmt.Errorf("warm-up: %w", err)
	}
	return c.loop(ctx, spec.Duration)
}

type caller struct {
	transport *http.Transport
	spec      clientSpec
}

func (c *caller) once(ctx context.Context) (sample, error) {
	var s sample
	start := time.Now()
	buf := new(bytes.Buffer)
	for _, url := range c.spec.URLs {
		took, err := c.request(ctx, url, buf)
		if err != nil {
			return s, err
		}
		s.Nanos = append(s.Nanos, took.Nanoseconds())
	}
	s.Seconds = time.Since(start).Seconds()
	return s, nil
}

func (c *caller) loop(ctx context.Context, length time.Duration) (sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results := make([][]int64, c.spec.Callers)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			nanos, err := c.until(ctx, start.Add(length))
			results[i] = nanos
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	s := sample{Seconds: time.Since(start).Seconds()}
	for _, r := range results {
		s.Nanos = append(s.Nanos, r...)
	}
	return s, context.Cause(ctx)
}

func (c *caller) until(ctx context.Context, end time.Time) ([]int64, error) {
	nanos := make([]int64, 0, 1<<16)
	buf := new(bytes.Buffer)
	for i := 0; time.Now().Before(end); i++ {
		took, err := c.request(ctx, c.spec.URLs[i%len(c.spec.URLs)], buf)
		if err != nil {
			return nanos, err
		}
		nanos = append(nanos, took.Nanoseconds())
	}
	return nanos, nil
}

// request calls a URL and checks the answer. The time ends when the last byte is read.
func (c *caller) request(ctx context.Context, url string, buf *bytes.Buffer) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, fmt.Errorf("make a request: %w", err)
	}
	start := time.Now()
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("call %s: %w", url, err)
	}
	buf.Reset()
	_, err = buf.ReadFrom(resp.Body)
	took := time.Since(start)
	_ = resp.Body.Close()
	if err != nil {
		return 0, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK || buf.String() != c.spec.Body {
		return 0, fmt.Errorf("wrong answer of %s: status %d, body %.200q", url, resp.StatusCode, buf.String())
	}
	return took, nil
}

// clientProcess runs call in a process of its own.
func clientProcess(ctx context.Context, spec clientSpec) (sample, error) {
	var s sample
	task, err := json.Marshal(spec)
	if err != nil {
		return s, fmt.Errorf("encode the client's task: %w", err)
	}
	cmd, err := self(ctx, roleClient)
	if err != nil {
		return s, err
	}
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(task), &out, &errOut
	if err := cmd.Run(); err != nil {
		return s, fmt.Errorf("client: %w: %s", err, bytes.TrimSpace(errOut.Bytes()))
	}
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		return s, fmt.Errorf("read the client's result: %w", err)
	}
	if len(s.Nanos) == 0 {
		return s, errors.New("the client got no answer in time")
	}
	return s, nil
}

// self makes a command that runs this program in another role.
func self(ctx context.Context, role string) (*exec.Cmd, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	return cmd, nil
}
