package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	roleStub = "stub-mayfly"
	stubLog  = "MAYFLY_BENCH_STUB_LOG"
)

// TestMain lets this binary play the client, the bare server and a stand-in for mayfly.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch role := os.Getenv(roleEnv); role {
	case "":
		// The race detector makes every process of ours sleep a second before it ends.
		_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
		os.Exit(m.Run())
	case roleStub:
		err = stubMain(ctx, os.Args[1:])
	default:
		err = dispatch(ctx, role, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// stubMain understands as much of mayfly's command line as bench uses.
func stubMain(ctx context.Context, args []string) error {
	if err := noteStub(args); err != nil {
		return err
	}
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i++ {
		if strings.HasPrefix(args[i], "--") {
			flags[args[i]] = args[i+1]
		}
	}
	switch args[0] {
	case "up", "server":
		return stubServer(ctx, flags)
	case "agent":
		<-ctx.Done()
		return nil
	case "deploy":
		if os.Getenv("MAYFLY_ACCESS_KEY") != "AKID:secret" || os.Getenv("MAYFLY_ENDPOINT") != "127.0.0.1:1" {
			return errors.New("not logged in")
		}
		_, err := os.Stat(args[1])
		return err
	}
	return nil
}

func noteStub(args []string) error {
	f, err := os.OpenFile(os.Getenv(stubLog), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, strings.Join(args, " "))
	return err
}

func stubServer(ctx context.Context, flags map[string]string) error {
	dir := filepath.Join(flags["--state-dir"], "server")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	admin := `{"id":"AKID","secret":"secret","ca":"PEM","endpoint":"127.0.0.1:1"}`
	if err := os.WriteFile(filepath.Join(dir, "admin.json"), []byte(admin), 0o600); err != nil {
		return err
	}
	srv := &http.Server{Addr: flags["--http-address"], Handler: http.HandlerFunc(bare), ReadHeaderTimeout: time.Second}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// stubBinary is a program that behaves as mayfly, and the file that tells what it was asked.
func stubBinary(t *testing.T) (binary, log string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	binary, log = filepath.Join(dir, "mayfly"), filepath.Join(dir, "asked")
	script := "#!/bin/sh\n" + roleEnv + "=" + roleStub + " exec '" + self + "' \"$@\"\n"
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(stubLog, log)
	return binary, log
}

// The whole program against a stand-in: every row is measured, written and printed, and nothing is left behind.
func TestBenchAgainstAStub(t *testing.T) {
	binary, log := stubBinary(t)
	out := filepath.Join(t.TempDir(), "rows.json")
	var stdout strings.Builder
	args := []string{"-mayfly", binary, "-out", out, "-warmup", "10ms", "-duration", "60ms", "-rounds", "2", "-cold", "12", "-runtimes-dir", "/images"}
	if err := dispatch(t.Context(), "", args, nil, &stdout, io.Discard); err != nil {
		t.Fatal(err)
	}
	var result struct{ Rows []row }
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &result); err != nil {
		t.Fatal(err)
	}
	if len(result.Rows) != 5 {
		t.Fatalf("%d rows: %s", len(result.Rows), b)
	}
	for i, r := range result.Rows {
		if r.Name != rowNames()[i] || r.P50 <= 0 || r.P99 < r.P50 || r.PerS <= 0 || r.Ratio <= 0 || r.Must == 0 || r.Aim == 0 || r.BareP50 <= 0 {
			t.Errorf("row %+v", r)
		}
		if !strings.Contains(stdout.String(), r.Name) {
			t.Errorf("%s is not in the table", r.Name)
		}
	}
	requireStubCalls(t, log)
}

func requireStubCalls(t *testing.T, log string) {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	var dir string
	for line := range strings.Lines(string(b)) {
		command, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		counts[command]++
		if command == "down" {
			dir = strings.Fields(rest)[1]
		}
		if (command == "up" || command == "agent") && !strings.Contains(rest, "--runtimes-dir /images") {
			t.Errorf("%s without the images: %s", command, line)
		}
	}
	// The stand-in's agent keeps no state, so that there are two states to take down.
	want := map[string]int{"up": 1, "server": 1, "agent": 1, "node": 1, "deploy": 2 + 2 + 12, "function": 12, "down": 2}
	for command, n := range want {
		if counts[command] != n {
			t.Errorf("%s was called %d times, want %d", command, counts[command], n)
		}
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

func TestBenchWithoutABinary(t *testing.T) {
	err := dispatch(t.Context(), "", []string{"-mayfly", "/nowhere/mayfly", "-rows", "warm_c1"}, nil, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
}

func TestClientCountsAndVerifies(t *testing.T) {
	var hits, conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		bare(w, r)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	got, err := call(t.Context(), clientSpec{URLs: []string{s.URL}, Callers: 4, Warmup: 10 * time.Millisecond, Duration: 50 * time.Millisecond, Body: answerBody})
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(len(got.Nanos)); n == 0 || n > hits.Load() || got.Seconds < 0.05 {
		t.Errorf("%d samples of %d requests in %v s", n, hits.Load(), got.Seconds)
	}
	if conns.Load() > 4 {
		t.Errorf("%d connections for 4 callers", conns.Load())
	}
}

func TestClientCallsEachOnce(t *testing.T) {
	var paths []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		bare(w, r)
	}))
	defer s.Close()
	got, err := clientProcess(t.Context(), clientSpec{URLs: []string{s.URL + "/a", s.URL + "/b", s.URL + "/c"}, Callers: 1, Once: true, Body: answerBody})
	if err != nil || len(got.Nanos) != 3 || strings.Join(paths, "") != "/a/b/c" {
		t.Errorf("%v, %v, %v", got, paths, err)
	}
}

func TestClientRefusesWrongAnswers(t *testing.T) {
	var n atomic.Int64
	wrong := map[string]http.HandlerFunc{
		"body":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `"Hello World"`) },
		"status": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusAccepted); bare(w, r) },
		"once in a while": func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1)%10 != 0 {
				bare(w, r)
			}
		},
		"broken off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, answerBody)
		},
	}
	for name, h := range wrong {
		s := httptest.NewServer(h)
		_, err := clientProcess(t.Context(), clientSpec{URLs: []string{s.URL}, Callers: 2, Duration: time.Minute, Body: answerBody})
		s.Close()
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]int64, 100)
	for i := range hundred {
		hundred[i] = int64(i + 1)
	}
	cases := []struct {
		in   []int64
		p    float64
		want float64
	}{
		{nil, 50, 0}, {[]int64{7}, 99, 7}, {[]int64{1, 2}, 50, 1}, {[]int64{1, 2, 3}, 50, 2}, {hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100},
	}
	for _, c := range cases {
		if got := percentile(c.in, c.p); got != c.want {
			t.Errorf("percentile %v of %d values: %v, want %v", c.p, len(c.in), got, c.want)
		}
	}
}

func TestFiguresOfJoinedRounds(t *testing.T) {
	var s sample
	s.add(sample{Nanos: []int64{3000, 1000}, Seconds: 1})
	s.add(sample{Nanos: []int64{2000, 90000}, Seconds: 1})
	f := s.figures()
	if f.p50 != 2 || f.p99 != 90 || f.perSecond != 2 {
		t.Errorf("%+v", f)
	}
}

func TestJudge(t *testing.T) {
	bare := figures{p50: 100, p99: 200, perSecond: 1000}
	cases := []struct {
		row   string
		got   figures
		shim  bool
		ok    bool
		ratio float64
	}{
		{"warm_c1", figures{400, 800, 1}, false, true, 4},
		{"warm_c1", figures{401, 800, 1}, false, false, 4.01},
		{"warm_c1", figures{400, 801, 1}, false, false, 4},
		{"warm_c1_inproc", figures{300, 9000, 1}, false, true, 3},
		{"warm_c1_inproc", figures{301, 1, 1}, false, false, 3.01},
		{"warm_c32", figures{1, 1, 250}, false, true, 0.25},
		{"warm_c32", figures{1, 1, 249}, false, false, 0.249},
		{"cold_empty", figures{110_000, 1e9, 1}, false, true, 1100},
		{"cold_empty", figures{110_001, 1, 1}, false, false, 1100.01},
		{"cold_empty", figures{50_001, 1, 1}, true, false, 500.01},
	}
	for _, c := range cases {
		r := judge(c.row, budgetOf(c.row, c.shim), c.got, bare)
		if r.OK != c.ok || math.Abs(r.Ratio-c.ratio) > 1e-9 || r.Name != c.row {
			t.Errorf("%s %+v: %+v", c.row, c.got, r)
		}
	}
}

func TestParseCPU(t *testing.T) {
	before := parseCPU("cpu  100 0 50 800 40 5 5 0 7 7")
	after := parseCPU("cpu  150 0 75 850 65 5 5 50 9 9")
	if before.total != 1000 || before.busy != 160 {
		t.Errorf("%+v", before)
	}
	if got := after.since(before); got != 125.0/200 {
		t.Errorf("busy %v", got)
	}
	if got := before.since(before); got != 0 {
		t.Errorf("no time passed: %v", got)
	}
}

func TestOptions(t *testing.T) {
	for _, args := range [][]string{{"-rows", "warm"}, {"-rounds", "0"}, {"-cold", "0"}, {"-duration", "0s"}, {"x"}, {"-nope"}} {
		if _, err := parseOptions(args, io.Discard); err == nil || errors.Is(err, flag.ErrHelp) {
			t.Errorf("%v: accepted (%v)", args, err)
		}
	}
	o, err := parseOptions([]string{"-out", "f", "-rows", "cold_empty,warm_c1"}, io.Discard)
	if err != nil || o.out != "f" || len(o.rows) != 2 || o.duration < 5*time.Second || o.warmup != 2*time.Second {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestMountsBelow(t *testing.T) {
	if err := mountsBelow(t.TempDir()); err != nil {
		t.Error(err)
	}
	// /proc is a mount on every machine that this runs on.
	if err := mountsBelow(""); err == nil {
		t.Error("no mount found below the root")
	}
}
