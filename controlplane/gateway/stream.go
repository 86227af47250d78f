package gateway

import (
	"net/http"
	"time"
)

// streamed passes chunks of an answer on as they come.
type streamed struct {
	c       *call
	control *http.ResponseController
	prelude prelude
	head    *answer // set once headers are sent
}

// stream invokes with response streaming. Once headers are sent, a failure closes the connection in the midst of the
// body, so that no client takes a part for the whole.
func (c *call) stream(req *Request) {
	s := &streamed{c: c, control: http.NewResponseController(c.w.ResponseWriter)}
	resp, err := c.g.cfg.Invoker.Invoke(c.r.Context(), req, s.emit)
	failed := err != nil || resp.GetFunctionError() != ""
	switch {
	case failed && s.head != nil:
		c.w.status = 0
		panic(http.ErrAbortHandler)
	case failed, s.head == nil && len(s.prelude.held) == 0 && len(resp.GetPayload()) > 0:
		// A runtime that can't stream answers at once, in the same format as without streaming.
		c.buffered(resp, err)
		return
	case s.head == nil:
		if err := s.begin(plainStream(), s.prelude.held); err != nil {
			c.w.status = 0
			panic(http.ErrAbortHandler)
		}
	}
	_ = s.control.SetWriteDeadline(time.Time{})
}

// emit sends one chunk. An error tells the invoker that the client is gone.
func (s *streamed) emit(chunk []byte) error {
	if s.head != nil {
		return s.send(chunk)
	}
	head, body, done := s.prelude.add(chunk)
	if !done {
		return nil
	}
	if head == nil {
		head = plainStream()
	}
	return s.begin(head, body)
}

func (s *streamed) begin(head *answer, body []byte) error {
	s.head = head
	head.writeHeader(s.c.w, -1, "application/octet-stream", s.c.url.GetCors() != nil)
	return s.send(body)
}

func (s *streamed) send(chunk []byte) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if len(chunk) > 0 && bodyAllowed(s.head.status) {
		if _, err := s.c.w.Write(chunk); err != nil {
			return err
		}
	}
	return s.control.Flush()
}
