package logs

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	followInterval = 200 * time.Millisecond
	// A batch of lines ends at these many lines or bytes of text.
	batchLines = 500
	batchBytes = 128 << 10
)

// query is what to read: times in Unix nanoseconds, from inclusive, to exclusive.
type query struct {
	from, to  int64
	requestID string
	hash      uint64
	filter    string
}

// Read calls emit with the lines that q asks for, in order of time. With q.Follow it goes on until ctx or the
// range of q ends.
func (s *Store) Read(ctx context.Context, q *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
	f, err := s.function(q.GetNamespace(), q.GetFunction())
	if err != nil {
		return err
	}
	now := query{requestID: q.GetRequestId(), hash: hashID(q.GetRequestId()), filter: q.GetFilter()}
	if q.GetSince() != nil {
		now.from = q.GetSince().AsTime().UnixNano()
	}
	until := int64(math.MaxInt64)
	if q.GetUntil() != nil {
		until = q.GetUntil().AsTime().UnixNano()
	}
	limit := int(q.GetLimit())
	for {
		// Whatever is older than the cut-off is there by now: the next round begins at it, and neither misses nor repeats.
		cutoff := s.now()
		now.to = min(until, cutoff)
		if err := f.read(ctx, now, limit, emit); err != nil {
			return err
		}
		if !q.GetFollow() || cutoff >= until {
			return nil
		}
		now.from, limit = max(now.from, cutoff), 0
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followInterval):
		}
	}
}

// source is a part of a log that can be read by itself. Sources are ordered by time.
type source func(q query, take func([]*mayflyv1.LogLine) error) error

// sources are all parts that may hold lines for q, oldest first.
func (f *function) sources(q query) []source {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []source
	for i, s := range f.segments {
		last := i == len(f.segments)-1
		if s.first >= q.to || (!last && f.segments[i+1].first <= q.from) {
			continue
		}
		var offset int64
		if last {
			offset = f.startOffset(q.from)
		}
		all = append(all, segmentSource(s, offset))
	}
	memory := slices.Clone(f.batch)
	var pending []section
	for st := range f.streams {
		if sec := st.snapshot(); len(sec.records) > 0 {
			pending = append(pending, sec)
		}
	}
	return append(all, memorySource(memory), memorySource(pending))
}

// startOffset is where in the newest segment lines from a time on begin, at the latest.
func (f *function) startOffset(from int64) int64 {
	if len(f.recent) == 0 || f.recent[0].last >= from {
		return 0
	}
	for _, b := range f.recent {
		if b.last >= from {
			return b.offset
		}
	}
	return f.segments[len(f.segments)-1].size
}

func segmentSource(s segment, offset int64) source {
	return func(q query, take func([]*mayflyv1.LogLine) error) error {
		want := func(h blockHeader, _ int64) bool {
			return h.first < q.to && h.last >= q.from && (q.requestID == "" || h.filter.mayHave(q.hash))
		}
		read := func(_ blockHeader, body []byte) error { return take(q.lines(splitBody(body))) }
		return s.blocks(offset, want, read, nil)
	}
}

func memorySource(sections []section) source {
	return func(q query, take func([]*mayflyv1.LogLine) error) error { return take(q.lines(sections)) }
}

func splitBody(body []byte) []section {
	var all []section
	for len(body) > 0 {
		var parts [3][]byte
		for i := range parts {
			var err error
			if parts[i], body, err = nextBytes(body); err != nil {
				return all
			}
		}
		all = append(all, section{name: string(parts[0]), version: string(parts[1]), records: parts[2]})
	}
	return all
}

// lines are those of some sections that match, in order of time.
func (q query) lines(sections []section) []*mayflyv1.LogLine {
	var all []*mayflyv1.LogLine
	for _, sec := range sections {
		for rest := sec.records; len(rest) > 0; {
			r, next, err := nextRecord(rest)
			if err != nil {
				break
			}
			rest = next
			if r.time >= q.from && r.time < q.to && (q.requestID == "" || q.requestID == string(r.requestID)) {
				all = append(all, q.filtered(r.logLines(sec.name, sec.version))...)
			}
		}
	}
	if len(sections) > 1 {
		slices.SortStableFunc(all, byTime)
	}
	return all
}

func byTime(a, b *mayflyv1.LogLine) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) }

func (q query) filtered(lines []*mayflyv1.LogLine) []*mayflyv1.LogLine {
	if q.filter == "" {
		return lines
	}
	return slices.DeleteFunc(lines, func(l *mayflyv1.LogLine) bool { return !strings.Contains(l.GetText(), q.filter) })
}

// read emits the lines for q, with a limit only the newest.
func (f *function) read(ctx context.Context, q query, limit int, emit func(*mayflyv1.ReadLogsResponse) error) error {
	sources := f.sources(q)
	out := batcher{ctx: ctx, emit: emit}
	if limit > 0 {
		lines, err := newest(q, sources, limit)
		if err != nil {
			return err
		}
		return out.close(out.take(lines))
	}
	for _, s := range sources {
		if err := s(q, out.take); err != nil {
			return err
		}
	}
	return out.close(nil)
}

// newest reads sources from the newest one back until it has limit lines.
func newest(q query, sources []source, limit int) ([]*mayflyv1.LogLine, error) {
	var all []*mayflyv1.LogLine
	for _, s := range slices.Backward(sources) {
		var lines []*mayflyv1.LogLine
		err := s(q, func(more []*mayflyv1.LogLine) error {
			lines = append(lines, more...)
			if len(lines) > 2*limit {
				lines = append(lines[:0], lines[len(lines)-limit:]...)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		all = append(lines, all...)
		if len(all) >= limit {
			return all[len(all)-limit:], nil
		}
	}
	return all, nil
}

// batcher groups lines to messages of a decent size.
type batcher struct {
	ctx   context.Context // lives as long as one call
	emit  func(*mayflyv1.ReadLogsResponse) error
	lines []*mayflyv1.LogLine
	bytes int
}

func (b *batcher) take(lines []*mayflyv1.LogLine) error {
	for _, l := range lines {
		b.lines = append(b.lines, l)
		b.bytes += len(l.GetText())
		if len(b.lines) >= batchLines || b.bytes >= batchBytes {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
	return b.ctx.Err()
}

func (b *batcher) flush() error {
	if len(b.lines) == 0 {
		return nil
	}
	lines := b.lines
	b.lines, b.bytes = nil, 0
	if err := b.ctx.Err(); err != nil {
		return err
	}
	return b.emit(&mayflyv1.ReadLogsResponse{Lines: lines})
}

func (b *batcher) close(err error) error {
	if err != nil {
		return err
	}
	return b.flush()
}
