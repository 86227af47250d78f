package fleet

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// logBookmark remembers where a reader of a log is, so that the query can be asked again from there.
type logBookmark struct {
	query *mayflyv1.ReadLogsRequest
	emit  func(*mayflyv1.ReadLogsResponse) error
	// at is the time of the last line, seen are the lines of that time.
	at   time.Time
	seen []*mayflyv1.LogLine
	// skip are lines that will come again.
	skip []*mayflyv1.LogLine
}

// take hands on the lines that are new.
func (b *logBookmark) take(r *mayflyv1.ReadLogsResponse) error {
	lines := r.GetLines()
	if len(b.skip) > 0 {
		lines = slices.DeleteFunc(slices.Clone(lines), b.again)
	}
	for _, line := range lines {
		if t := line.GetTime().AsTime(); !t.Equal(b.at) {
			b.at, b.seen = t, nil
		}
		b.seen = append(b.seen, line)
	}
	if len(lines) == 0 {
		return nil
	}
	return b.emit(&mayflyv1.ReadLogsResponse{Lines: lines})
}

// again tells whether line is one of those to skip, each once.
func (b *logBookmark) again(line *mayflyv1.LogLine) bool {
	i := slices.IndexFunc(b.skip, func(s *mayflyv1.LogLine) bool { return proto.Equal(s, line) })
	if i >= 0 {
		b.skip = slices.Delete(b.skip, i, i+1)
	}
	return i >= 0
}

// resume makes query that for the rest.
func (b *logBookmark) resume() {
	if len(b.seen) == 0 {
		return
	}
	b.query = proto.CloneOf(b.query)
	b.query.Since = timestamppb.New(b.at)
	b.skip = slices.Clone(b.seen)
}
