package containerd

import (
	"context"
	"log/slog"
	"time"
)

// poolRetry is how long a pool waits after it failed to make something.
const poolRetry = 5 * time.Second

// pool makes things ahead of need. What is taken never comes back.
type pool[T any] struct {
	make    func() (T, error)
	discard func(T)
	ready   chan T
	taken   chan struct{} // there may be room in ready
}

func newPool[T any](size int, produce func() (T, error), discard func(T)) *pool[T] {
	return &pool[T]{make: produce, discard: discard, ready: make(chan T, max(0, size)), taken: make(chan struct{}, 1)}
}

// get takes one that waits, or makes one.
func (p *pool[T]) get() (T, error) {
	select {
	case v := <-p.ready:
		select {
		case p.taken <- struct{}{}:
		default:
		}
		return v, nil
	default:
		return p.make()
	}
}

// run keeps the pool full until ctx ends, and empties it then.
func (p *pool[T]) run(ctx context.Context, log *slog.Logger) error {
	defer p.close()
	for {
		retry := p.fill(ctx, log)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.taken:
		case <-retry:
		}
	}
}

// fill returns a channel that tells when to try again, nil if the pool is full.
func (p *pool[T]) fill(ctx context.Context, log *slog.Logger) <-chan time.Time {
	for ctx.Err() == nil && len(p.ready) < cap(p.ready) {
		v, err := p.make()
		if err != nil {
			log.Warn("could not prepare for new sandboxes", slog.Any("error", err))
			return time.After(poolRetry)
		}
		p.ready <- v // run alone adds, so there is room
	}
	return nil
}

// close discards what waits.
func (p *pool[T]) close() {
	for {
		select {
		case v := <-p.ready:
			p.discard(v)
		default:
			return
		}
	}
}
