package runtimeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// sandboxHost is the name of the sandbox in the URIs of subscriptions.
	sandboxHost = "sandbox.localdomain"
	// maxWaiting is how many bytes may wait for a subscriber that is slow; what comes then is dropped, and counted.
	maxWaiting = 4 << 20
	// sendTimeout bounds one delivery.
	sendTimeout = 30 * time.Second
)

// buffering is when a batch is sent: when it has so many items or bytes, or its first one is so old.
type buffering struct {
	MaxItems  int   `json:"maxItems"`
	MaxBytes  int   `json:"maxBytes"`
	TimeoutMS int64 `json:"timeoutMs"`
}

// Lambda's limits: the least, the most and the default.
func (b *buffering) check() error {
	for _, v := range []struct {
		name           string
		value          *int
		least, most, d int
	}{
		{"maxItems", &b.MaxItems, 1000, 10_000, 10_000},
		{"maxBytes", &b.MaxBytes, 262_144, 1_048_576, 262_144},
	} {
		if *v.value == 0 {
			*v.value = v.d
		}
		if *v.value < v.least || *v.value > v.most {
			return fmt.Errorf("buffering.%s must be from %d to %d", v.name, v.least, v.most)
		}
	}
	if b.TimeoutMS == 0 {
		b.TimeoutMS = 1000
	}
	if b.TimeoutMS < 25 || b.TimeoutMS > 30_000 {
		return errors.New("buffering.timeoutMs must be from 25 to 30000")
	}
	return nil
}

// subscription is the body of a subscription's request.
type subscription struct {
	SchemaVersion string    `json:"schemaVersion"`
	Types         []string  `json:"types"`
	Buffering     buffering `json:"buffering"`
	Destination   struct {
		Protocol string `json:"protocol"`
		URI      string `json:"URI"`
	} `json:"destination"`
}

// target checks a subscription and returns where to send.
func (s *subscription) target() (string, error) {
	if !slices.Contains([]string{"2022-07-01", "2022-12-13", "2025-01-29"}, s.SchemaVersion) {
		return "", fmt.Errorf("schemaVersion %q is not known", s.SchemaVersion)
	}
	if len(s.Types) == 0 {
		return "", errors.New("types is empty")
	}
	for _, t := range s.Types {
		if t != categoryPlatform && t != categoryFunction && t != categoryExtension {
			return "", fmt.Errorf("type %q is not known", t)
		}
	}
	if s.Destination.Protocol != "HTTP" {
		return "", fmt.Errorf("destination.protocol %q is not served: use HTTP", s.Destination.Protocol)
	}
	u, err := url.Parse(s.Destination.URI)
	if err != nil || u.Scheme != "http" || (u.Hostname() != sandboxHost && u.Hostname() != "127.0.0.1") {
		return "", fmt.Errorf("destination.URI %q must be http://%s:PORT/PATH", s.Destination.URI, sandboxHost)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	u.Host = net.JoinHostPort("127.0.0.1", port) // the name is in no hosts file
	return u.String(), s.Buffering.check()
}

func (s *server) subscribe(w http.ResponseWriter, r *http.Request) {
	e := s.identify(w, r)
	if e == nil {
		return
	}
	var in subscription
	body, _, err := readBody(r)
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	var target string
	if err == nil {
		target, err = in.target()
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "ValidationError", err.Error())
		return
	}
	sub := newSubscriber(in.Types, in.Buffering, target)
	if !s.telemetry.add(sub) {
		refuse(w, http.StatusForbidden, "Telemetry.SubscriptionClosed", "Telemetry API subscription is closed")
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.background.Go(func() { sub.run(ctx) })
	s.background.Go(func() {
		<-s.gone
		cancel()
	})
	s.telemetry.emit(categoryPlatform, "platform.telemetrySubscription", map[string]any{"name": e.name, "state": "Subscribed", "types": in.Types})
	writeJSON(w, http.StatusOK, "OK")
}

// subscriber buffers events for one extension and sends them in batches.
type subscriber struct {
	types  []string
	limits buffering
	room   int // in bytes, for what waits
	target string
	client *http.Client
	wake   chan struct{} // has a token when there is something new

	sending chan struct{} // has a token while a batch is sent: one at a time, in order

	mu           sync.Mutex
	waiting      [][]byte
	size         int
	since        time.Time // of the first that waits
	dropped      int
	droppedBytes int
}

func newSubscriber(types []string, limits buffering, target string) *subscriber {
	return &subscriber{
		types: types, limits: limits, room: maxWaiting, target: target, wake: make(chan struct{}, 1), sending: make(chan struct{}, 1),
		client: &http.Client{Timeout: sendTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}, // no proxy leads to a sandbox
	}
}

func (s *subscriber) wants(category string) bool { return slices.Contains(s.types, category) }

// offer takes an event, if the subscriber wants it and has room.
func (s *subscriber) offer(category string, body []byte) {
	if !s.wants(category) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size+len(body) > s.room {
		s.dropped++
		s.droppedBytes += len(body)
		return
	}
	if len(s.waiting) == 0 {
		s.since = time.Now()
	}
	s.waiting = append(s.waiting, body)
	s.size += len(body)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run sends batches when they are due, until ctx ends.
func (s *subscriber) run(ctx context.Context) {
	defer s.client.CloseIdleConnections()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(s.due())
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			continue // it may be due now
		case <-timer.C:
		}
		s.sendBatch(ctx)
	}
}

// due is how long the next batch has to wait; without one, as good as for ever.
func (s *subscriber) due() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.waiting) == 0:
		return time.Hour
	case len(s.waiting) >= s.limits.MaxItems || s.size >= s.limits.MaxBytes:
		return 0
	}
	return time.Until(s.since.Add(time.Duration(s.limits.TimeoutMS) * time.Millisecond))
}

// sendBatch sends what waits, up to the limits, and tells whether there is more. What could not be sent waits on.
func (s *subscriber) sendBatch(ctx context.Context) (more bool) {
	select {
	case s.sending <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	defer func() { <-s.sending }()
	n, body := s.batch()
	if n == 0 {
		return false
	}
	err := s.post(ctx, body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = time.Now() // the rest, or the next try
	if err != nil {
		return false
	}
	for _, e := range s.waiting[:n] {
		s.size -= len(e)
	}
	s.waiting = slices.Clone(s.waiting[n:])
	s.reportDropped()
	return len(s.waiting) > 0
}

// batch is the JSON array of the next n events.
func (s *subscriber) batch() (n int, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := 0
	for n < len(s.waiting) && n < s.limits.MaxItems && size < s.limits.MaxBytes {
		size += len(s.waiting[n])
		n++
	}
	return n, slices.Concat([]byte{'['}, bytes.Join(s.waiting[:n], []byte{','}), []byte{']'})
}

// reportDropped tells the subscriber what it has missed.
func (s *subscriber) reportDropped() {
	if s.dropped == 0 {
		return
	}
	body, _ := json.Marshal(map[string]any{"time": timestamp(time.Now()), "type": "platform.logsDropped", "record": map[string]any{
		"reason": "Consumer seems to have fallen behind as it has not acknowledged receipt of logs.", "droppedRecords": s.dropped, "droppedBytes": s.droppedBytes,
	}}) // plain values
	s.dropped, s.droppedBytes = 0, 0
	s.waiting = append(s.waiting, body)
	s.size += len(body)
}

func (s *subscriber) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("the subscriber answered %s", resp.Status)
	}
	return nil
}

// flush sends all that waits, until the deadline.
func (s *subscriber) flush(deadline time.Time) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	for s.sendBatch(ctx) {
	}
}
