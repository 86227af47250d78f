// Package runtimetest is the conformance suite of sandbox.Runtime: what the life cycle relies on, for the real one
// and for the fake alike.
//
// What belongs here: behaviour that every Runtime has. What does not: isolation, limits and left-overs on the host,
// which only a real one has (agent/containerd).
package runtimetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// limit bounds every wait, so that a broken Runtime fails rather than hangs.
const limit = time.Minute

// Config makes a valid configuration, with an id of its own, of a sandbox whose process does as args say: "sleep" until
// it is killed, or "exit" with the status in the next argument.
type Config func(t *testing.T, args ...string) sandbox.Config

// Run runs the suite. newRuntime returns a Runtime that works until the test ends; tests may share one.
func Run(t *testing.T, newRuntime func(t *testing.T) sandbox.Runtime, config Config) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(t *testing.T, r sandbox.Runtime, config Config)
	}{
		{"a created sandbox is listed until it is destroyed", testListed},
		{"an id is used once at a time", testDuplicate},
		{"a destroyed id can be used again", testReuse},
		{"wait tells the exit status, as often as asked", testExit},
		{"wait ends with its context", testWaitContext},
		{"wait ends when the sandbox is destroyed", testWaitDestroyed},
		{"destroy is idempotent and may be called at once", testDestroyTwice},
		{"an exited sandbox stays until it is destroyed", testExitedStays},
		{"an unknown id", testUnknown},
		{"a bad configuration leaves nothing", testBadConfig},
		{"a sandbox has a usage", testUsage},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newRuntime(t), config) })
	}
}

func create(t *testing.T, r sandbox.Runtime, c sandbox.Config) {
	t.Helper()
	if err := r.Create(bounded(t), c); err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := r.Destroy(ctx, c.ID); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	})
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func destroy(t *testing.T, r sandbox.Runtime, id string) {
	t.Helper()
	if err := r.Destroy(bounded(t), id); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
}

func listed(t *testing.T, r sandbox.Runtime, id string) bool {
	t.Helper()
	ids, err := r.List(bounded(t))
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	return slices.Contains(ids, id)
}

func testListed(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "sleep")
	if listed(t, r, c.ID) {
		t.Error("listed before it was created")
	}
	create(t, r, c)
	if !listed(t, r, c.ID) {
		t.Error("not listed after it was created")
	}
	destroy(t, r, c.ID)
	if listed(t, r, c.ID) {
		t.Error("listed after it was destroyed")
	}
}

func testDuplicate(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "sleep")
	create(t, r, c)
	again := config(t, "sleep")
	again.ID = c.ID
	if err := r.Create(bounded(t), again); err == nil {
		t.Error("a second sandbox with the same id was created")
	}
	if _, err := r.Usage(bounded(t), c.ID); err != nil || !listed(t, r, c.ID) {
		t.Errorf("the refused Create hurt the first sandbox: %v", err)
	}
}

func testReuse(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "exit", "3")
	create(t, r, c)
	destroy(t, r, c.ID)
	again := config(t, "exit", "4")
	again.ID = c.ID
	create(t, r, again)
	exit, err := r.Wait(bounded(t), c.ID)
	if err != nil || exit.Code != 4 {
		t.Errorf("Wait: %+v, %v; want status 4", exit, err)
	}
}

func testExit(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "exit", "7")
	create(t, r, c)
	first, err := r.Wait(bounded(t), c.ID)
	if err != nil || first.Code != 7 || first.OOMKilled || first.Time.IsZero() {
		t.Errorf("Wait: %+v, %v; want status 7, not out of memory, with a time", first, err)
	}
	if second, err := r.Wait(bounded(t), c.ID); err != nil || second != first {
		t.Errorf("second Wait: %+v, %v; want %+v", second, err, first)
	}
}

func testWaitContext(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "sleep")
	create(t, r, c)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Wait(ctx, c.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v, want the context's error", err)
	}
}

func testWaitDestroyed(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "sleep")
	create(t, r, c)
	ctx, ended := bounded(t), make(chan error, 1)
	go func() {
		exit, err := r.Wait(ctx, c.ID)
		if err == nil && exit.Code == 0 {
			err = errors.New("a killed sandbox exited with 0")
		} else {
			err = ctx.Err() // an exit by a signal, or an error that the sandbox is gone: both will do
		}
		ended <- err
	}()
	destroy(t, r, c.ID)
	if err := <-ended; err != nil {
		t.Errorf("Wait: %v", err)
	}
}

func testDestroyTwice(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "sleep")
	create(t, r, c)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := r.Destroy(t.Context(), c.ID); err != nil {
				t.Errorf("Destroy: %v", err)
			}
		})
	}
	wg.Wait()
	destroy(t, r, c.ID)
}

func testExitedStays(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "exit", "0")
	create(t, r, c)
	if exit, err := r.Wait(bounded(t), c.ID); err != nil || exit.Code != 0 {
		t.Fatalf("Wait: %+v, %v", exit, err)
	}
	if !listed(t, r, c.ID) {
		t.Error("not listed although it was not destroyed")
	}
}

func testUnknown(t *testing.T, r sandbox.Runtime, config Config) {
	id := config(t, "sleep").ID
	if err := r.Destroy(bounded(t), id); err != nil {
		t.Errorf("Destroy: %v, want no error", err)
	}
	if _, err := r.Wait(bounded(t), id); err == nil {
		t.Error("Wait: no error")
	}
	if _, err := r.Usage(bounded(t), id); err == nil {
		t.Error("Usage: no error")
	}
	if err := r.PlaceCode(bounded(t), id, t.TempDir()); err == nil {
		t.Error("PlaceCode: no error")
	}
}

func testBadConfig(t *testing.T, r sandbox.Runtime, config Config) {
	for name, spoil := range map[string]func(*sandbox.Config){
		"no id":       func(c *sandbox.Config) { c.ID = "" },
		"id of dots":  func(c *sandbox.Config) { c.ID = "../x" },
		"no root":     func(c *sandbox.Config) { c.RootFS = "" },
		"no command":  func(c *sandbox.Config) { c.Command = nil },
		"no memory":   func(c *sandbox.Config) { c.MemoryBytes = 0 },
		"no CPU":      func(c *sandbox.Config) { c.MilliCPUs = 0 },
		"no process":  func(c *sandbox.Config) { c.PIDs = 0 },
		"no sockets":  func(c *sandbox.Config) { c.SocketDir = "" },
		"no such dir": func(c *sandbox.Config) { c.RootFS = "/nonexistent/rootfs" },
	} {
		c := config(t, "sleep")
		spoil(&c)
		if err := r.Create(bounded(t), c); err == nil {
			t.Errorf("%s: created", name)
		}
		if listed(t, r, c.ID) {
			t.Errorf("%s: listed after Create failed", name)
		}
	}
}

func testUsage(t *testing.T, r sandbox.Runtime, config Config) {
	c := config(t, "sleep")
	create(t, r, c)
	u, err := r.Usage(bounded(t), c.ID)
	if err != nil || u.MemoryBytes < 0 || u.PeakMemoryBytes < u.MemoryBytes || u.CPU < 0 {
		t.Errorf("Usage: %+v, %v", u, err)
	}
}
