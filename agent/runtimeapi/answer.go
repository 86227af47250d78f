package runtimeapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

const (
	modeHeader      = "Lambda-Runtime-Function-Response-Mode"
	errorTypeHeader = "Lambda-Runtime-Function-Error-Type"
	errorBodyHeader = "Lambda-Runtime-Function-Error-Body"

	// maxDrain is how much of a refused body is read so that its sender sees the refusal and not a broken connection.
	maxDrain = 64 << 20
	// maxChunk is the size of the buffer between a streaming function and the agent.
	maxChunk = 64 << 10
)

func (s *server) response(w http.ResponseWriter, r *http.Request) {
	meta, ok := s.startAnswer(w, r.PathValue("id"))
	if !ok {
		return
	}
	defer s.endAnswer()
	if r.Header.Get(modeHeader) == "streaming" && meta.Stream {
		s.stream(w, r)
		return
	}
	s.buffered(w, r)
}

// buffered passes a whole answer on. aws-lambda-go sends all answers in chunks, and a reader that failed half-way shows
// in the trailers only.
func (s *server) buffered(w http.ResponseWriter, r *http.Request) {
	body, tooLarge, err := readBody(r)
	if err != nil || tooLarge {
		s.failAnswer(tooLarge, err)
		refuseBody(w, tooLarge, err)
		return
	}
	if failure := trailerError(r.Trailer); failure != nil {
		s.reply(w, s.sendJSON(frame.TypeError, failure))
		return
	}
	s.reply(w, s.send(frame.TypeResult, body))
}

// failAnswer ends an invocation whose answer can't be used.
func (s *server) failAnswer(tooLarge bool, err error) {
	failure := frame.Error{Type: "Function.ResponseSizeTooLarge", Message: fmt.Sprintf(
		"Response payload size exceeded maximum allowed payload size (%d bytes).", MaxPayload)}
	if !tooLarge {
		failure = truncated(err)
	}
	_ = s.sendJSON(frame.TypeError, failure) // without an agent the sandbox ends
}

func truncated(err error) frame.Error {
	return frame.Error{Type: "Runtime.TruncatedResponse", Message: fmt.Sprintf("the response broke off: %v", err)}
}

func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	if err := s.sendJSON(frame.TypeStreamBegin, frame.StreamBegin{ContentType: r.Header.Get("Content-Type")}); err != nil {
		s.reply(w, err)
		return
	}
	if err := s.copyChunks(r.Body); err != nil {
		_ = s.sendJSON(frame.TypeStreamEnd, truncated(err)) // without an agent the sandbox ends
		refuseBody(w, false, err)
		return
	}
	if failure := trailerError(r.Trailer); failure != nil {
		s.reply(w, s.sendJSON(frame.TypeStreamEnd, failure))
		return
	}
	s.reply(w, s.send(frame.TypeStreamEnd, nil))
}

// copyChunks sends on what is there as soon as it is there.
func (s *server) copyChunks(body io.Reader) error {
	buf := make([]byte, maxChunk)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if err := s.send(frame.TypeStream, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *server) invocationError(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.startAnswer(w, r.PathValue("id")); !ok {
		return
	}
	defer s.endAnswer()
	body, tooLarge, err := readBody(r)
	if err != nil || tooLarge {
		s.failAnswer(tooLarge, err)
		refuseBody(w, tooLarge, err)
		return
	}
	s.reply(w, s.sendJSON(frame.TypeError, decodeError(body, r.Header.Get(errorTypeHeader))))
}

func readBody(r *http.Request) (body []byte, tooLarge bool, err error) {
	body, err = io.ReadAll(io.LimitReader(r.Body, MaxPayload+1))
	if err != nil {
		return nil, false, err
	}
	if len(body) <= MaxPayload {
		return body, false, nil
	}
	_, err = io.CopyN(io.Discard, r.Body, maxDrain)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return nil, true, err
}

func refuseBody(w http.ResponseWriter, tooLarge bool, err error) {
	if tooLarge {
		refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge",
			fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", MaxPayload))
		return
	}
	refuse(w, http.StatusBadRequest, "InvalidRequest", fmt.Sprintf("the body could not be read: %v", err))
}

// trailerError is the error that a runtime found after it had begun to answer, or nil.
func trailerError(trailer http.Header) *frame.Error {
	kind, encoded := trailer.Get(errorTypeHeader), trailer.Get(errorBodyHeader)
	if kind == "" && encoded == "" {
		return nil
	}
	body, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		body = []byte(encoded)
	}
	e := decodeError(body, kind)
	return &e
}

// decodeError reads what runtimes send as an error: Python and Ruby a list of strings as stackTrace, Go a list of
// objects, Node a list of strings as trace. What is no JSON becomes the message.
func decodeError(body []byte, kind string) frame.Error {
	var in struct {
		Type       string            `json:"errorType"`
		Message    string            `json:"errorMessage"`
		StackTrace []json.RawMessage `json:"stackTrace"`
		Trace      []json.RawMessage `json:"trace"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		in.Message = string(body)
	}
	out := frame.Error{Type: in.Type, Message: in.Message}
	if out.Type == "" {
		out.Type = kind
	}
	if out.Type == "" {
		out.Type = "Runtime.Unknown"
	}
	for _, f := range append(in.StackTrace, in.Trace...) {
		out.StackTrace = append(out.StackTrace, traceLine(f))
	}
	return out
}

func traceLine(raw json.RawMessage) string {
	var line string
	if json.Unmarshal(raw, &line) == nil {
		return line
	}
	var at struct {
		Path  string `json:"path"`
		Line  int    `json:"line"`
		Label string `json:"label"`
	}
	if json.Unmarshal(raw, &at) == nil && at.Path != "" {
		return fmt.Sprintf("%s:%d %s", at.Path, at.Line, at.Label)
	}
	return string(raw)
}
