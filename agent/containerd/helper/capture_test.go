package main

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestCapture(t *testing.T) {
	var log bytes.Buffer
	var lines []string
	c, out, err := newCapture(&log, func(line []byte) { lines = append(lines, string(line)) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(out, "one\ntwo\nthr"); err != nil {
		t.Fatal(err)
	}
	c.flush() // nobody else reads
	if log.String() != "one\ntwo\nthr" || !slices.Equal(lines, []string{"one\n", "two\n"}) {
		t.Errorf("log %q, lines %q", log.String(), lines)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.run()
	}()
	if _, err := io.WriteString(out, "ee\n"); err != nil {
		t.Fatal(err)
	}
	out.Close()
	<-ended
	if log.String() != "one\ntwo\nthree\n" || len(lines) != 3 || lines[2] != "three\n" {
		t.Errorf("log %q, lines %q", log.String(), lines)
	}
	c.flush() // after the end
}

func TestCaptureSplitsLongLines(t *testing.T) {
	var lengths []int
	c := &capture{take: func(line []byte) { lengths = append(lengths, len(line)) }}
	for range maxCaptured / 1024 * 2 {
		c.split([]byte(strings.Repeat("x", 1024)))
	}
	c.split([]byte("end\n"))
	if !slices.Equal(lengths, []int{maxCaptured, maxCaptured, 4}) {
		t.Errorf("lines of %v bytes", lengths)
	}
}

// A writer that never stops holds up nobody who waits for what was there.
func TestFlushEnds(t *testing.T) {
	c, out, err := newCapture(io.Discard, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	ended, written := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		c.run()
	}()
	go func() {
		defer close(written)
		for chunk := bytes.Repeat([]byte("x\n"), 16<<10); ; {
			if _, err := out.Write(chunk); err != nil {
				return
			}
		}
	}()
	for range 20 {
		c.flush()
	}
	out.Close()
	<-written
	<-ended
}

func TestHighWater(t *testing.T) {
	for status, want := range map[string]int64{
		"Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 7 kB\n": 1234 << 10,
		"Name:\tkthread\n": 0,
		"Name:\tx\nVmHWM:": 0,
	} {
		if got := highWater(status); got != want {
			t.Errorf("%q: %d, want %d", status, got, want)
		}
	}
	if peakMemory() <= 0 {
		t.Error("no process has any memory")
	}
}

// A process that forks in a burst of others is neither lost nor taken for another.
func TestProcesses(t *testing.T) {
	all := newProcesses()
	for want := range 20 {
		p, err := all.startCaptured([]string{"/bin/sh", "-c", "exit " + string(rune('0'+want%10))}, nil, func([]byte) {})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Ended()
		if p.Status() != want%10 {
			t.Errorf("status %d, want %d", p.Status(), want%10)
		}
		p.Signal(9) // it has ended
	}
	if _, err := all.startCaptured([]string{"/no/such/program"}, nil, func([]byte) {}); err == nil {
		t.Error("no error")
	}
}
