package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func line(second int, text string) *mayflyv1.LogLine {
	return &mayflyv1.LogLine{Time: timestamppb.New(time.Unix(int64(second), 0)), Text: text}
}

// tell emits lines in batches of two.
func tell(lines ...*mayflyv1.LogLine) func(context.Context, *mayflyv1.ReadLogsRequest, func(*mayflyv1.ReadLogsResponse) error) error {
	return func(_ context.Context, q *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
		newest := lines
		if n := int(q.GetLimit()); n > 0 && n < len(lines) {
			newest = lines[len(lines)-n:]
		}
		for batch := range slices.Chunk(newest, 2) {
			if err := emit(&mayflyv1.ReadLogsResponse{Lines: batch}); err != nil {
				return err
			}
		}
		return nil
	}
}

func (h *home) readLogs(ctx context.Context, q *mayflyv1.ReadLogsRequest) (string, error) {
	var texts []string
	err := h.ReadLogs(ctx, q, func(r *mayflyv1.ReadLogsResponse) error {
		for _, l := range r.GetLines() {
			texts = append(texts, l.GetText())
		}
		return nil
	})
	return strings.Join(texts, " "), err
}

func TestLogsAreMergedByTime(t *testing.T) {
	h := newHome(t, nil)
	if _, err := h.readLogs(t.Context(), &mayflyv1.ReadLogsRequest{}); err == nil {
		t.Error("logs without a node")
	}
	a, _ := h.attach("a", 1000)
	b, _ := h.attach("b", 1000)
	h.attach("empty", 1000)
	a.logs = tell(line(1, "a1"), line(4, "a4"), line(5, "a5"), line(9, "a9"))
	b.logs = tell(line(2, "b2"), line(3, "b3"), line(6, "b6"))
	for q, want := range map[*mayflyv1.ReadLogsRequest]string{
		{}:         "a1 b2 b3 a4 a5 b6 a9",
		{Limit: 3}: "a5 b6 a9",
		{Limit: 9}: "a1 b2 b3 a4 a5 b6 a9",
	} {
		if got, err := h.readLogs(t.Context(), q); err != nil || got != want {
			t.Errorf("limit %d: %q, %v, want %q", q.GetLimit(), got, err, want)
		}
	}
}

func TestLogsOfAFailingNodeAreNamed(t *testing.T) {
	h := newHome(t, nil)
	a, _ := h.attach("a", 1000)
	b, _ := h.attach("b", 1000)
	a.logs = tell(line(1, "a1"))
	b.logs = func(context.Context, *mayflyv1.ReadLogsRequest, func(*mayflyv1.ReadLogsResponse) error) error {
		return fault.Unavailable(0, "its disk is broken")
	}
	got, err := h.readLogs(t.Context(), &mayflyv1.ReadLogsRequest{})
	if want := "a1 log lines of node b may be missing: its disk is broken"; err != nil || got != want {
		t.Fatalf("%q, %v, want %q", got, err, want)
	}
}

func TestReaderThatFailsEndsTheQuery(t *testing.T) {
	h := newHome(t, nil)
	a, _ := h.attach("a", 1000)
	a.logs = tell(line(1, "a1"), line(2, "a2"), line(3, "a3"))
	err := h.ReadLogs(t.Context(), &mayflyv1.ReadLogsRequest{}, func(*mayflyv1.ReadLogsResponse) error { return errTest })
	if !errors.Is(err, errTest) {
		t.Fatal(err)
	}
}

// follow emits what comes from lines until the query ends, and notes the query.
func follow(lines <-chan *mayflyv1.LogLine, since *[]string) func(context.Context, *mayflyv1.ReadLogsRequest, func(*mayflyv1.ReadLogsResponse) error) error {
	return func(ctx context.Context, q *mayflyv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error {
		*since = append(*since, fmt.Sprint(q.GetSince().GetSeconds()))
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case l := <-lines:
				if err := emit(&mayflyv1.ReadLogsResponse{Lines: []*mayflyv1.LogLine{l}}); err != nil {
					return err
				}
			}
		}
	}
}

func TestFollowedLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		a, _ := h.attach("a", 1000)
		fromA, fromB := make(chan *mayflyv1.LogLine), make(chan *mayflyv1.LogLine)
		var sinceA, sinceB []string
		a.logs = follow(fromA, &sinceA)
		ctx, cancel := context.WithCancel(t.Context())
		var got string
		done := make(chan error)
		go func() {
			var err error
			got, err = h.readLogs(ctx, &mayflyv1.ReadLogsRequest{Follow: true})
			done <- err
		}()
		fromA <- line(1, "a1")
		b := newFakeWorker(1000)
		b.logs = follow(fromB, &sinceB)
		session := h.attachWorker("b", b) // comes later
		synctest.Wait()
		fromA <- line(4, "a4") // waits for b's
		fromB <- line(3, "b3")
		time.Sleep(time.Second)
		session.Close()
		synctest.Wait()
		h.attachWorker("b", b) // and again, from where it was
		synctest.Wait()
		fromB <- line(8, "b8")
		time.Sleep(time.Second)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		lines := strings.Split(got, " ")
		if !strings.HasPrefix(got, "a1 b3 a4 log lines of node b") || lines[len(lines)-1] != "b8" {
			t.Errorf("got %q", got)
		}
		if strings.Join(sinceB, " ") != "0 3" {
			t.Errorf("b was asked since %v", sinceB)
		}
	})
}
