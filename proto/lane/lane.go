// Package lane sends the messages of one side of a session between agent and control plane: those that come while one
// is on its way go together in the next, so that the cost of a message is shared when there are many.
//
// What belongs here: queueing, batches, back-pressure. What does not: what a message is, and the stream below.
package lane

import (
	"context"
	"errors"
	"runtime"
	"sync"
)

const (
	// batchBytes bounds what goes into one message beside its first part.
	batchBytes = 64 << 10
	// batchParts bounds how many parts one message has.
	batchParts = 256
	// queueBytes is what may wait; who wants to add to more than that waits, too.
	queueBytes = 4 << 20
)

// ErrClosed is the error of a sender whose Run has ended.
var ErrClosed = errors.New("the lane is closed")

// Sender sends parts in order over a stream that takes one message at a time. Who finds nobody sending sends the first
// message itself, which costs no change of goroutines; Run sends what has come meanwhile.
type Sender[T any] struct {
	// send hands a message of one part or more to the stream; an error ends the sender.
	send func(parts []T) error
	// lost is told of each part that was taken and never sent; nil: nobody is.
	lost func(part T)
	kick chan struct{} // hands the sending to Run

	mu      sync.Mutex
	queue   []T
	sizes   []int
	bytes   int
	sending bool
	drained chan struct{} // closed when the queue has become shorter; nil: nobody waits for that
	err     error
	batch   []T // of the one who sends
}

// NewSender makes a sender that keeps what it is given until Start.
func NewSender[T any](send func(parts []T) error, lost func(part T)) *Sender[T] {
	return &Sender[T]{send: send, lost: lost, sending: true, kick: make(chan struct{}, 1)}
}

// Start lets the sender send. It is called once.
func (s *Sender[T]) Start() { s.kick <- struct{}{} }

// Run sends what others leave to it until done is closed or the stream fails. What waits then is lost.
func (s *Sender[T]) Run(done <-chan struct{}) {
	for {
		select {
		case <-s.kick:
		case <-done:
			s.fail(nil, ErrClosed)
			return
		}
		for s.sendNext() {
		}
	}
}

// Send takes a part of so many bytes. It returns at once while another sends: the part goes next then. Errors: the
// stream's, once it has failed; ctx's, if it ends while too much waits; ErrClosed. After an error the part was not taken.
func (s *Sender[T]) Send(ctx context.Context, part T, size int) error {
	s.mu.Lock()
	for s.err == nil && s.bytes > 0 && s.bytes+size > queueBytes {
		if err := s.awaitLocked(ctx); err != nil {
			s.mu.Unlock()
			return err
		}
	}
	if s.err != nil {
		defer s.mu.Unlock()
		return s.err
	}
	s.queue, s.sizes, s.bytes = append(s.queue, part), append(s.sizes, size), s.bytes+size
	mine := !s.sending
	s.sending = true
	s.mu.Unlock()
	if mine && s.sendNext() {
		s.kick <- struct{}{}
	}
	return nil
}

// awaitLocked gives up the lock until the queue has become shorter.
func (s *Sender[T]) awaitLocked(ctx context.Context) error {
	if s.drained == nil {
		s.drained = make(chan struct{})
	}
	drained := s.drained
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sendNext sends one message and tells whether more waits; if not, the sending is over.
func (s *Sender[T]) sendNext() bool {
	runtime.Gosched() // whoever is about to send may join
	parts := s.next()
	if len(parts) == 0 {
		return s.more()
	}
	if err := s.send(parts); err != nil {
		s.fail(parts, err)
		return false
	}
	return s.more()
}

func (s *Sender[T]) more() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = len(s.queue) > 0
	return s.sending
}

// next takes the parts of one message.
func (s *Sender[T]) next() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < min(len(s.queue), batchParts) && (n == 0 || size+s.sizes[n] <= batchBytes) {
		size += s.sizes[n]
		n++
	}
	clear(s.batch)
	s.batch = append(s.batch[:0], s.queue[:n]...)
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	s.sizes = s.sizes[:copy(s.sizes, s.sizes[n:])]
	s.bytes -= size
	s.wakeLocked()
	return s.batch
}

func (s *Sender[T]) wakeLocked() {
	if s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

// fail ends the sender: nothing that waits is sent any more.
func (s *Sender[T]) fail(parts []T, err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	rest := s.queue
	s.queue, s.sizes, s.bytes = nil, nil, 0
	s.wakeLocked()
	s.mu.Unlock()
	if s.lost == nil {
		return
	}
	for _, p := range parts {
		s.lost(p)
	}
	for _, p := range rest {
		s.lost(p)
	}
}
