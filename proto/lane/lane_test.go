package lane

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// stream records messages; it takes one at a time, as gRPC demands.
type stream struct {
	t        *testing.T
	mu       sync.Mutex
	busy     bool
	messages [][]int
	took     time.Duration
	err      error
}

func (s *stream) send(parts []int) error {
	s.mu.Lock()
	if s.busy {
		s.t.Error("two messages at once")
	}
	s.busy = true
	s.mu.Unlock()
	time.Sleep(s.took)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	if s.err != nil {
		return s.err
	}
	s.messages = append(s.messages, slices.Clone(parts))
	return nil
}

func (s *stream) parts() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.messages...)
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// running starts a sender; the returned function stops it.
func running(s *Sender[int]) func() {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(done) })
	s.Start()
	return func() {
		close(done)
		wg.Wait()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsSentBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &stream{t: t}
		s := NewSender(st.send, nil)
		must(t, s.Send(t.Context(), 0, 1))
		must(t, s.Send(t.Context(), 1, 1))
		synctest.Wait()
		if st.count() != 0 {
			t.Errorf("sent %v", st.parts())
		}
		stop := running(s)
		synctest.Wait()
		if !slices.Equal(st.parts(), upTo(2)) {
			t.Errorf("sent %v", st.parts())
		}
		stop()
	})
}

func TestWhatComesMeanwhileGoesTogetherAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &stream{t: t, took: time.Millisecond}
		s := NewSender(st.send, nil)
		defer running(s)()
		synctest.Wait()
		go func() { must(t, s.Send(context.Background(), 0, 1)) }()
		synctest.Wait() // the first is on its way
		for i := 1; i < 100; i++ {
			must(t, s.Send(t.Context(), i, 1))
		}
		time.Sleep(time.Second)
		if !slices.Equal(st.parts(), upTo(100)) || st.count() != 2 {
			t.Errorf("sent %v", st.parts())
		}
	})
}

func TestMessagesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &stream{t: t}
		s := NewSender(st.send, nil)
		for i := range 10 {
			must(t, s.Send(t.Context(), i, batchBytes/2))
		}
		for i := range 2 * batchParts {
			must(t, s.Send(t.Context(), 10+i, 0))
		}
		defer running(s)()
		synctest.Wait()
		if !slices.Equal(st.parts(), upTo(10+2*batchParts)) {
			t.Errorf("sent %v", st.parts())
		}
		st.mu.Lock()
		defer st.mu.Unlock()
		for _, m := range st.messages {
			large := 0
			for _, part := range m {
				if part < 10 {
					large++
				}
			}
			if large > 2 || len(m) > batchParts {
				t.Errorf("message %v", m)
			}
		}
	})
}

func TestMuchThatWaitsHoldsUpWhoSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &stream{t: t}
		s := NewSender(st.send, nil)
		must(t, s.Send(t.Context(), 0, queueBytes))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Send(ctx, 7, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("sent over the limit: %v", err)
		}
		var sent sync.WaitGroup
		sent.Go(func() { must(t, s.Send(context.Background(), 1, 1)) })
		synctest.Wait()
		defer running(s)()
		sent.Wait()
		synctest.Wait()
		if !slices.Equal(st.parts(), upTo(2)) {
			t.Errorf("sent %v", st.parts())
		}
	})
}

func TestAFailedStreamLosesWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &stream{t: t, took: time.Millisecond, err: errors.New("broken")}
		var lost []int
		s := NewSender(st.send, func(part int) { lost = append(lost, part) })
		defer running(s)()
		synctest.Wait()
		var sent sync.WaitGroup
		for i := range 3 {
			sent.Go(func() { _ = s.Send(context.Background(), i, 1) })
			synctest.Wait()
		}
		sent.Wait()
		if !slices.Equal(lost, upTo(3)) {
			t.Errorf("lost %v", lost)
		}
		if err := s.Send(t.Context(), 9, 1); !errors.Is(err, st.err) {
			t.Errorf("a failed sender took a part: %v", err)
		}
	})
}

func TestAClosedSenderTakesNothing(t *testing.T) {
	st := &stream{t: t}
	s := NewSender(st.send, nil)
	running(s)()
	if err := s.Send(t.Context(), 0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestManySendersLoseNothing(t *testing.T) {
	st := &stream{t: t}
	s := NewSender(st.send, nil)
	stop := running(s)
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for j := range 1000 {
				must(t, s.Send(context.Background(), 1000*i+j, 1))
			}
		})
	}
	all.Wait()
	for len(st.sorted()) < 32000 { // what was handed to Run
		time.Sleep(time.Millisecond)
	}
	stop()
	if !slices.Equal(st.sorted(), upTo(32000)) {
		t.Error("parts were lost or doubled")
	}
	last := map[int]int{}
	for _, part := range st.parts() {
		if part < last[part/1000] {
			t.Fatalf("part %d came after %d", part, last[part/1000])
		}
		last[part/1000] = part
	}
}

func (s *stream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.messages)
}

func (s *stream) sorted() []int {
	all := s.parts()
	slices.Sort(all)
	return all
}
