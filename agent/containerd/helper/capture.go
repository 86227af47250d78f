package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxCaptured is where longer lines of captured output are split for telemetry, in bytes.
	maxCaptured = 256 << 10
	// maxPassed is what a pipe holds, unless it was made larger: more can't have been written before a flush began.
	maxPassed = 64 << 10
)

// capture reads what processes write, passes it on to the log and gives each line to take.
type capture struct {
	in   *os.File
	raw  syscall.RawConn
	log  io.Writer
	take func(line []byte)

	mu      sync.Mutex // held while output is passed on: afterwards it is in the log
	buffer  [32 << 10]byte
	partial []byte
}

// newCapture returns the end to write to as well.
func newCapture(log io.Writer, take func([]byte)) (c *capture, out *os.File, err error) {
	in, out, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	raw, err := in.SyscallConn()
	if err != nil {
		return nil, nil, errors.Join(err, in.Close(), out.Close())
	}
	return &capture{in: in, raw: raw, log: log, take: take}, out, nil
}

// run passes on until the last writer has gone.
func (c *capture) run() {
	for over := false; !over; {
		err := c.raw.Read(func(fd uintptr) (done bool) {
			var empty bool
			empty, over = c.pass(int(fd))
			return over || !empty
		})
		over = over || err != nil
	}
	c.in.Close()
}

// flush passes on what has been written until now.
func (c *capture) flush() {
	_ = c.raw.Control(func(fd uintptr) { c.pass(int(fd)) }) // after the end there is nothing
}

// pass reads until the pipe, which does not block, is empty, or has given what it can hold; over tells that nothing
// more comes.
func (c *capture) pass(fd int) (empty, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for total := 0; total < maxPassed; {
		n, err := unix.Read(fd, c.buffer[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return true, false
		case err != nil || n == 0:
			return true, true
		default:
			total += n
			_, _ = c.log.Write(c.buffer[:n]) // the log has no reader only while the sandbox ends
			c.split(c.buffer[:n])
		}
	}
	return false, false
}

// split gives the lines of b to take, and keeps what has no end yet.
func (c *capture) split(b []byte) {
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n') + 1
		if n == 0 {
			n = len(b)
		}
		n = min(n, maxCaptured-len(c.partial))
		c.partial = append(c.partial, b[:n]...)
		if len(c.partial) == maxCaptured || c.partial[len(c.partial)-1] == '\n' {
			c.take(c.partial)
			c.partial = c.partial[:0]
		}
		b = b[n:]
	}
}

// peakMemory adds up the most memory that each process of the sandbox has had, in bytes: its cgroup can't be seen from
// inside.
func peakMemory() int64 {
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0
	}
	total := int64(0)
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		total += highWater(string(text))
	}
	return total
}

// highWater reads VmHWM, in bytes, from a process's status.
func highWater(status string) int64 {
	_, rest, _ := strings.Cut(status, "\nVmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	kilobytes, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return kilobytes << 10
}
