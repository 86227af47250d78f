package logs

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

const (
	// maxLine is where longer lines are split, in bytes.
	maxLine = 256 << 10
	// tailBytes is the size of an invocation's log tail, as in Lambda.
	tailBytes = 4 << 10
)

// Stream takes the log of one sandbox. Its lock is its own: nothing that touches a disk holds it.
type Stream struct {
	store         *Store
	name, version string

	mu       sync.Mutex
	pipe     *pipe
	pending  []byte   // records that aren't flushed
	ids      []uint64 // hashes of their request ids
	first    int64    // times of the first and last of them
	last     int64
	partial  []byte // a line whose end hasn't come
	scratch  []byte
	startAt  int // where START begins and ends in pending; the end is -1 once it is flushed
	startEnd int
	tail     []byte
	wantTail bool
	request  string // of the invocation that runs
	written  int    // bytes that it has written, or that were written since the last one
	cut      bool   // it has used up its budget
	dropped  int    // lines dropped for want of memory
	closed   bool
}

// Begin writes START: what comes in from here on belongs to the request. tail asks End for the log's tail.
func (s *Stream) Begin(requestID string, tail bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	s.endLine()
	s.request, s.wantTail, s.written, s.cut = requestID, tail, 0, false
	s.tail = s.tail[:0]
	s.ids = append(s.ids, hashID(requestID))
	s.startAt = len(s.pending)
	s.add(recordStart, nil)
	s.startEnd = len(s.pending)
}

// Abort takes back Begin: the event never reached the function.
func (s *Stream) Abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.startEnd == len(s.pending) {
		s.store.pending.Add(int64(s.startAt - len(s.pending)))
		s.pending = s.pending[:s.startAt:s.startAt] // a reader may still look at what is cut off
	}
	s.request, s.wantTail, s.startEnd = "", false, -1
}

// End reads what the function has written until now, writes END and REPORT and returns the tail, if it was asked for.
func (s *Stream) End(r Report) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	s.endLine()
	s.scratch = appendReport(s.scratch[:0], r)
	s.add(recordReport, s.scratch)
	return s.finish()
}

// BeginInit writes a line of the platform and starts to collect a tail, for the init of the function.
func (s *Stream) BeginInit(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.request, s.wantTail, s.written, s.cut = "", true, 0, false
	s.tail = s.tail[:0]
	s.add(recordNotice, []byte(text))
}

// EndInit ends it, with a last line unless text is empty, and returns the tail.
func (s *Stream) EndInit(text string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	s.endLine()
	if text != "" {
		s.add(recordNotice, []byte(text))
	}
	return s.finish()
}

func (s *Stream) finish() []byte {
	var tail []byte
	if s.wantTail {
		tail = bytes.ToValidUTF8(s.tail[max(0, len(s.tail)-tailBytes):], nil)
	}
	s.request, s.wantTail, s.written, s.cut = "", false, 0, false
	s.tail = nil
	return tail
}

// Notice writes a line of the platform, of the invocation that runs.
func (s *Stream) Notice(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	s.endLine()
	s.add(recordNotice, []byte(text))
}

// Write takes what the function wrote. It never fails.
func (s *Stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take(b)
	return len(b), nil
}

// take splits b in lines; the lock is held.
func (s *Stream) take(b []byte) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			s.partial = append(s.partial, b...)
			s.splitLong()
			return
		}
		if len(s.partial) == 0 && i <= maxLine {
			s.line(b[:i])
		} else {
			s.partial = append(s.partial, b[:i]...)
			s.splitLong()
			s.line(s.partial)
			s.partial = s.partial[:0]
		}
		b = b[i+1:]
	}
}

// splitLong writes what exceeds maxLine, cut between characters.
func (s *Stream) splitLong() {
	for len(s.partial) > maxLine {
		n := maxLine
		for n > maxLine-utf8.UTFMax && !utf8.RuneStart(s.partial[n]) {
			n--
		}
		s.line(s.partial[:n])
		s.partial = append(s.partial[:0], s.partial[n:]...)
	}
}

// endLine writes a line whose end never came.
func (s *Stream) endLine() {
	if len(s.partial) > 0 {
		s.line(s.partial)
		s.partial = nil
	}
}

// line writes one line of the function within the budget.
func (s *Stream) line(b []byte) {
	s.written += len(b) + 1
	switch {
	case s.written <= s.store.cfg.InvocationBytes:
		s.add(recordLine, bytes.TrimSuffix(b, []byte{'\r'}))
	case !s.cut:
		s.cut = true
		s.add(recordNotice, fmt.Appendf(nil, "Mayfly: the log is cut here: more than %d bytes in one invocation", s.store.cfg.InvocationBytes))
	}
}

func (s *Stream) add(kind byte, body []byte) {
	if s.store.full() && kind == recordLine {
		s.dropped++
		return
	}
	if s.dropped > 0 && !s.store.full() {
		text := fmt.Appendf(nil, "Mayfly: %d lines were dropped: the log could not be written fast enough", s.dropped)
		s.dropped = 0
		s.add(recordNotice, text)
	}
	now := s.store.now()
	before := len(s.pending)
	if before == 0 {
		s.first = now
	}
	s.last = now
	s.pending = appendRecord(s.pending, kind, now, s.request, body)
	s.store.grew(len(s.pending) - before)
	if s.wantTail {
		s.addTail(record{kind: kind, time: now, requestID: []byte(s.request), body: body})
	}
}

func (s *Stream) addTail(r record) {
	s.tail = append(s.tail, strings.Join(r.texts(s.version), "\n")...)
	s.tail = append(s.tail, '\n')
	if len(s.tail) > 16*tailBytes {
		s.tail = append(s.tail[:0], s.tail[len(s.tail)-tailBytes:]...)
	}
}

// Close reads what is left in the pipe and closes it. The store flushes the rest later.
func (s *Stream) Close() {
	s.mu.Lock()
	s.drain()
	s.endLine()
	p := s.pipe
	s.pipe, s.closed = nil, true
	s.mu.Unlock()
	if p != nil {
		p.close()
	}
}

// section is part of a stream's records, the unit that blocks are made of.
type section struct {
	name, version string
	records       []byte
	ids           []uint64
	first, last   int64
}

// flushable takes the records older than cutoff; empty tells that nothing is left and nothing will come.
func (s *Stream) flushable(cutoff int64) (sec section, empty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.before(cutoff)
	if n == 0 {
		return section{}, s.closed && len(s.pending) == 0
	}
	sec = section{name: s.name, version: s.version, records: s.pending[:n:n], ids: s.ids, first: s.first, last: s.last}
	rest := s.pending[n:]
	s.pending, s.ids, s.startEnd = nil, nil, -1
	if len(rest) > 0 {
		s.keep(&sec, rest)
	} else if s.request != "" {
		s.ids = append(s.ids, hashID(s.request))
	}
	return sec, s.closed && len(s.pending) == 0
}

// keep holds back records that came after the cut-off.
func (s *Stream) keep(sec *section, rest []byte) {
	s.pending = bytes.Clone(rest)
	s.ids = append(s.ids, sec.ids...)
	if r, _, err := nextRecord(rest); err == nil {
		s.first = r.time
		sec.last = r.time - 1
	}
}

// before is the size of the records older than cutoff.
func (s *Stream) before(cutoff int64) int {
	if len(s.pending) == 0 || s.last < cutoff {
		return len(s.pending)
	}
	rest := s.pending
	for len(rest) > 0 {
		r, next, err := nextRecord(rest)
		if err != nil || r.time >= cutoff {
			break
		}
		rest = next
	}
	return len(s.pending) - len(rest)
}

// snapshot is the records that aren't flushed; they never change.
func (s *Stream) snapshot() section {
	s.mu.Lock()
	defer s.mu.Unlock()
	return section{name: s.name, version: s.version, records: slices.Clip(s.pending), first: s.first, last: s.last}
}
