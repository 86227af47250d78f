// Package logs keeps what functions write: it takes their output from FIFOs, files it by function and
// request, and reads it back, also while it is being written.
//
// What belongs here: capture, START/END/REPORT lines, segment files, retention, queries. What does not: merging
// the logs of several agents (controlplane/fleet), the agent's own log (slog).
//
// Lines are held in memory per sandbox and written by Run about once a second; a crash loses at most those.
// An invocation never waits for a disk. See segment.go for the files.
package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const pipeBuffer = 16 << 10

// Config is what a Store needs. Zero values mean the default.
type Config struct {
	// Dir holds a directory per namespace, in it one per function.
	Dir    string
	Logger *slog.Logger
	Now    func() time.Time
	// FlushInterval is the time that a line may stay in memory: 1 s.
	FlushInterval time.Duration
	// FunctionBytes is how much is kept of a function: 100 MiB.
	FunctionBytes int64
	// MaxAge is how long lines are kept: 14 days.
	MaxAge time.Duration
	// SegmentBytes is where a new file begins: 8 MiB.
	SegmentBytes int64
	// InvocationBytes is how much one invocation may write: 10 MiB. The rest is dropped.
	InvocationBytes int
	// PendingBytes is how much may wait in memory in all: 64 MiB. Lines beyond are dropped.
	PendingBytes int64
}

func (c Config) withDefaults() Config {
	set(&c.Logger, slog.New(slog.DiscardHandler))
	set(&c.FlushInterval, time.Second)
	set(&c.FunctionBytes, 100<<20)
	set(&c.MaxAge, 14*24*time.Hour)
	set(&c.SegmentBytes, 8<<20)
	set(&c.InvocationBytes, 10<<20)
	set(&c.PendingBytes, 64<<20)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

func set[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Store is the logs of one agent. Make it with Open.
type Store struct {
	cfg     Config
	buffers sync.Pool
	pending atomic.Int64 // bytes in memory
	clock   atomic.Int64 // the last time given out
	urgent  chan struct{}

	flushing sync.Mutex // one flush at a time

	mu        sync.Mutex
	functions map[string]*function
}

// Open makes a Store over cfg.Dir.
func Open(cfg Config) (*Store, error) {
	s := &Store{cfg: cfg.withDefaults(), urgent: make(chan struct{}, 1), functions: map[string]*function{}}
	s.buffers.New = func() any { return new([pipeBuffer]byte) }
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	return s, nil
}

// now is a time later than any before: order by it is the order of writing, also when the clock is set back.
func (s *Store) now() int64 {
	for {
		last := s.clock.Load()
		t := max(s.cfg.Now().UnixNano(), last+1)
		if s.clock.CompareAndSwap(last, t) {
			return t
		}
	}
}

// notBefore makes later times greater than t: that of a line of an earlier process.
func (s *Store) notBefore(t int64) {
	for {
		last := s.clock.Load()
		if last >= t || s.clock.CompareAndSwap(last, t) {
			return
		}
	}
}

func (s *Store) full() bool { return s.pending.Load() > s.cfg.PendingBytes }

// grew counts bytes in memory, and wakes the flusher when they become many.
func (s *Store) grew(n int) {
	total := s.pending.Add(int64(n))
	if step := s.cfg.PendingBytes / 16; total/step != (total-int64(n))/step {
		select {
		case s.urgent <- struct{}{}:
		default:
		}
	}
}

// Stream opens the log of one sandbox of a function. name is its log stream, YYYY/MM/DD/[VERSION]ID. Close it.
func (s *Store) Stream(namespace, functionName, name, version string) (*Stream, error) {
	f, err := s.function(namespace, functionName)
	if err != nil {
		return nil, err
	}
	st := &Stream{store: s, name: name, version: version, startEnd: -1}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[st] = struct{}{}
	return st, nil
}

func (s *Store) function(namespace, name string) (*function, error) {
	for _, part := range []string{namespace, name} {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00") {
			return nil, fmt.Errorf("logs of function %q/%q: no such name is possible", namespace, name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := namespace + "/" + name
	if f, ok := s.functions[key]; ok {
		return f, nil
	}
	f := &function{store: s, dir: filepath.Join(s.cfg.Dir, namespace, name), streams: map[*Stream]struct{}{}}
	if err := f.load(); err != nil {
		return nil, err
	}
	s.functions[key] = f
	return f, nil
}

// Run writes lines to disk and deletes old ones until ctx ends, then writes the rest.
func (s *Store) Run(ctx context.Context) error {
	flush := time.NewTicker(s.cfg.FlushInterval)
	defer flush.Stop()
	sweep := time.NewTicker(time.Hour)
	defer sweep.Stop()
	s.sweep()
	for {
		select {
		case <-ctx.Done():
			return s.Flush()
		case <-sweep.C:
			s.sweep()
			continue
		case <-flush.C:
		case <-s.urgent:
		}
		if err := s.Flush(); err != nil {
			s.cfg.Logger.Error("can't write functions' logs", "error", err)
		}
	}
}

// Flush writes everything that is in memory.
func (s *Store) Flush() error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	var errs error
	for _, f := range s.all() {
		if err := f.flush(); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

func (s *Store) all() []*function {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*function, 0, len(s.functions))
	for _, f := range s.functions {
		all = append(all, f)
	}
	return all
}

// sweep deletes what is too old, also of functions that nobody calls any more.
func (s *Store) sweep() {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	dirs, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*", "*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		f, err := s.function(filepath.Base(filepath.Dir(dir)), filepath.Base(dir))
		if err != nil {
			s.cfg.Logger.Error("can't read a log directory", "dir", dir, "error", err)
			continue
		}
		f.retain()
	}
}
