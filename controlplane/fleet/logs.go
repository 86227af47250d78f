package fleet

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// logHoldBack is how long a followed line waits for earlier ones of other nodes.
	logHoldBack = 250 * time.Millisecond
	// logBatch is the most lines of one answer.
	logBatch = 512
)

// ReadLogs merges the logs of all connected agents by time. With q.Follow it goes on until ctx ends, over agents that
// come later too, and waits a quarter of a second for lines of other nodes. A node that fails is named by a line of
// the platform in its place. Each agent's lines are fetched as emit takes them: a slow reader keeps no agent waiting
// for anything but its own query. Error: UNAVAILABLE if no agent is connected.
func (f *Fleet) ReadLogs(ctx context.Context, q *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	m := &merger{fleet: f, query: q, emit: emit, events: make(chan logEvent), sources: map[*session]*logSource{}, last: map[string]*timestamppb.Timestamp{}}
	defer m.readers.Wait()
	defer cancel()
	return m.run(ctx)
}

// merger brings the lines of several agents in order. Only run's goroutine touches it, but for events.
type merger struct {
	fleet   *Fleet
	query   *mayflyv1.ReadLogsRequest
	emit    func(*mayflyv1.ReadLogsResponse) error
	events  chan logEvent
	readers sync.WaitGroup
	sources map[*session]*logSource
	last    map[string]*timestamppb.Timestamp // time of the last line, by node
	out     []*mayflyv1.LogLine
	kept    []*mayflyv1.LogLine // the newest so far, if there is a limit
}

// logSource is one agent's part: at most one batch is under way.
type logSource struct {
	session *session
	more    chan struct{}
	lines   []*mayflyv1.LogLine
	since   time.Time // when lines came
	ended   bool
}

type logEvent struct {
	source *logSource
	lines  []*mayflyv1.LogLine
	err    error
	end    bool
}

func (m *merger) run(ctx context.Context) error {
	nodes := m.fleet.watchNodes()
	m.addSources(ctx)
	if len(m.sources) == 0 && !m.query.GetFollow() {
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "logs are kept by nodes with an agent, and none is connected")
	}
	for {
		if err := m.merge(); err != nil {
			return err
		}
		if len(m.sources) == 0 && !m.query.GetFollow() {
			return m.flushKept()
		}
		select {
		case <-ctx.Done():
			return ctxFault(ctx)
		case e := <-m.events:
			m.take(e)
		case <-m.holdBack():
		case <-nodes:
			if nodes = m.fleet.watchNodes(); m.query.GetFollow() {
				m.addSources(ctx)
			}
		}
	}
}

// addSources begins reading from agents that it doesn't read from yet.
func (m *merger) addSources(ctx context.Context) {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	for _, n := range m.fleet.nodes {
		if n.session == nil || m.sources[n.session] != nil {
			continue
		}
		q := proto.CloneOf(m.query)
		if last := m.last[n.ID]; last != nil {
			q.Since = timestamppb.New(last.AsTime().Add(1))
		}
		src := &logSource{session: n.session, more: make(chan struct{}, 1)}
		m.sources[n.session] = src
		m.readers.Go(func() { m.read(ctx, src, q) })
	}
}

func (m *merger) read(ctx context.Context, src *logSource, q *mayflyv1.ReadLogsRequest) {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	m.readers.Go(func() { // an agent in this process isn't told of its session's end
		select {
		case <-src.session.done:
			cancel()
		case <-reading.Done():
		}
	})
	err := src.session.worker.ReadLogs(reading, &agentv1.ReadLogsRequest{Query: q}, func(r *mayflyv1.ReadLogsResponse) error {
		if len(r.GetLines()) == 0 {
			return nil
		}
		if !m.tell(reading, logEvent{source: src, lines: r.GetLines()}) {
			return reading.Err()
		}
		select {
		case <-src.more:
			return nil
		case <-reading.Done():
			return reading.Err()
		}
	})
	m.tell(ctx, logEvent{source: src, err: err, end: true})
}

func (m *merger) tell(ctx context.Context, e logEvent) bool {
	select {
	case m.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

func (m *merger) take(e logEvent) {
	src := e.source
	if !e.end {
		src.lines, src.since = e.lines, time.Now()
		m.last[src.session.node.ID] = e.lines[len(e.lines)-1].GetTime()
		return
	}
	src.ended = true
	if e.err != nil {
		src.lines = append(src.lines, &mayflyv1.LogLine{
			Time: timestamppb.Now(), Kind: mayflyv1.LogKind_LOG_KIND_PLATFORM,
			Text: "log lines of node " + src.session.name() + " may be missing: " + fault.From(e.err).Message,
		})
	}
	if len(src.lines) == 0 {
		delete(m.sources, src.session)
	}
}

func (s *session) name() string {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	return s.node.Name
}

// merge hands on all lines that are known to be next.
func (m *merger) merge() error {
	for src := m.next(); src != nil; src = m.next() {
		line := src.lines[0]
		if src.lines = src.lines[1:]; len(src.lines) == 0 {
			m.drained(src)
		}
		if err := m.add(line); err != nil {
			return err
		}
	}
	return m.flush()
}

func (m *merger) drained(src *logSource) {
	if src.ended {
		delete(m.sources, src.session)
		return
	}
	src.more <- struct{}{}
}

// next is the source with the earliest line, if none that is yet to tell its lines could have an earlier one.
func (m *merger) next() *logSource {
	var first *logSource
	complete := true
	for _, src := range m.sources {
		switch {
		case len(src.lines) == 0:
			complete = false
		case first == nil || src.lines[0].GetTime().AsTime().Before(first.lines[0].GetTime().AsTime()):
			first = src
		}
	}
	late := first != nil && m.query.GetFollow() && time.Since(first.since) >= logHoldBack
	if complete || late {
		return first
	}
	return nil
}

// holdBack fires when a followed line has waited long enough for those of other nodes.
func (m *merger) holdBack() <-chan time.Time {
	if !m.query.GetFollow() {
		return nil
	}
	for _, src := range m.sources {
		if len(src.lines) > 0 {
			return time.After(logHoldBack)
		}
	}
	return nil
}

// limited tells whether only the newest lines of all agents are wanted: each has given that many of its own.
func (m *merger) limited() bool { return m.query.GetLimit() > 0 && !m.query.GetFollow() }

func (m *merger) add(line *mayflyv1.LogLine) error {
	if m.limited() {
		if m.kept = append(m.kept, line); len(m.kept) > 2*int(m.query.GetLimit()) {
			m.kept = append(m.kept[:0:0], m.kept[len(m.kept)-int(m.query.GetLimit()):]...)
		}
		return nil
	}
	if m.out = append(m.out, line); len(m.out) >= logBatch {
		return m.flush()
	}
	return nil
}

func (m *merger) flushKept() error {
	if !m.limited() {
		return nil
	}
	kept := m.kept[max(0, len(m.kept)-int(m.query.GetLimit())):]
	for len(kept) > 0 {
		n := min(logBatch, len(kept))
		if err := m.emit(&mayflyv1.ReadLogsResponse{Lines: kept[:n]}); err != nil {
			return err
		}
		kept = kept[n:]
	}
	return nil
}

func (m *merger) flush() error {
	if len(m.out) == 0 {
		return nil
	}
	out := m.out
	m.out = nil
	return m.emit(&mayflyv1.ReadLogsResponse{Lines: out})
}
