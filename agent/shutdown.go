package agent

import (
	"time"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// maxShutdown bounds what a bootstrap may ask for; Lambda's limit is 2 s.
const maxShutdown = 3 * time.Second

// functionExited is for a function whose end is known before that of PID 1.
func (b *box) functionExited(att *attempt, status int) {
	exit := sandbox.Exit{Code: status, Time: time.Now()}
	b.step(sandbox.Event{Kind: sandbox.EventExit, Attempt: att.number, Exit: exit})
}

// interrupt stops Create and whoever waits on the connection. Extensions begin to shut down.
func (b *box) interrupt(m sandbox.Machine) {
	b.mu.Lock()
	att := b.attempt
	var l *link
	var gentle bool
	if att != nil {
		l, gentle = att.link, att.shutdownTime > 0
	}
	b.mu.Unlock()
	if att == nil {
		return
	}
	att.cancel()
	att.endOnce.Do(func() { close(att.ended) })
	if att.listener != nil {
		_ = att.listener.Close()
	}
	switch {
	case gentle:
		l.shutdown(shutdownReason(m))
	case l != nil:
		l.close()
	}
}

// shutdownReason is what extensions are told.
func shutdownReason(m sandbox.Machine) string {
	switch m.Last {
	case sandbox.OutcomeTimeout:
		return "timeout"
	case sandbox.OutcomeExit, sandbox.OutcomeOutOfMemory, sandbox.OutcomeNotSent:
		return "failure"
	}
	return "spindown"
}

// awaitShutdown gives a bootstrap that was asked to end its time, and then closes the connection.
func (b *box) awaitShutdown() {
	b.mu.Lock()
	att, limit := b.attempt, time.Duration(0)
	if att != nil {
		limit, att.shutdownTime = att.shutdownTime, 0 // once
	}
	b.mu.Unlock()
	if limit == 0 {
		return
	}
	t := time.NewTimer(limit + farewell)
	defer t.Stop()
	select {
	case <-att.exited:
	case <-t.C:
	case <-b.agent.life.Done():
	}
	att.link.close()
}
