package runtimeapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

const (
	modeHeader      = "Lambda-Runtime-Function-Response-Mode"
	errorTypeHeader = "Lambda-Runtime-Function-Error-Type"
	errorBodyHeader = "Lambda-Runtime-Function-Error-Body"
	modeStreaming   = "streaming"

	// maxDrain is how much of a refused body is read so that its sender sees the refusal and not a broken connection.
	maxDrain = 64 << 20
	// maxChunk is the size of the buffer between a streaming function and the agent.
	maxChunk = 64 << 10
)

func (s *server) response(w http.ResponseWriter, r *http.Request) {
	mode := r.Header.Get(modeHeader)
	if mode != "" && !strings.EqualFold(mode, modeStreaming) {
		refuse(w, http.StatusBadRequest, "InvalidFunctionResponseMode", "Invalid function response mode")
		return
	}
	meta, ok := s.startAnswer(w, r.PathValue("id"), responding)
	if !ok {
		return
	}
	defer s.endAnswer()
	if mode != "" && meta.Stream {
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
		s.reply(w, s.answer(frame.TypeError, failure, len(body)))
		return
	}
	s.reply(w, s.answer(frame.TypeResult, body, len(body)))
}

// answer sends the end of an answer of so many bytes, or its error, after what the function wrote before it.
func (s *server) answer(t frame.Type, body []byte, produced int) error {
	errorType := ""
	if t == frame.TypeError || (t == frame.TypeStreamEnd && len(body) > 0) {
		errorType = errorTypeOf(body)
	}
	s.mu.Lock()
	s.measured.end(produced, errorType)
	p := s.process
	s.mu.Unlock()
	if p != nil {
		p.Flush()
	}
	return s.send(t, body)
}

// failAnswer ends an invocation whose answer can't be used.
func (s *server) failAnswer(tooLarge bool, err error) {
	failure := truncated(err)
	if tooLarge {
		failure = frame.Error{Type: "Function.ResponseSizeTooLarge", Message: fmt.Sprintf(
			"Response payload size exceeded maximum allowed payload size (%d bytes).", MaxPayload)}
	}
	body, _ := json.Marshal(failure)                // a plain struct
	_ = s.answer(frame.TypeError, body, MaxPayload) // without an agent the sandbox ends
}

func truncated(err error) frame.Error {
	return frame.Error{Type: "Runtime.TruncatedResponse", Message: fmt.Sprintf("the response broke off: %v", err)}
}

func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	if err := s.sendJSON(frame.TypeStreamBegin, frame.StreamBegin{ContentType: r.Header.Get("Content-Type")}); err != nil {
		s.reply(w, err)
		return
	}
	produced, err := s.copyChunks(r.Body)
	if err != nil {
		body, _ := json.Marshal(truncated(err))           // a plain struct
		_ = s.answer(frame.TypeStreamEnd, body, produced) // without an agent the sandbox ends
		refuseBody(w, false, err)
		return
	}
	s.reply(w, s.answer(frame.TypeStreamEnd, trailerError(r.Trailer), produced))
}

// copyChunks sends on what is there as soon as it is there, and counts the bytes.
func (s *server) copyChunks(body io.Reader) (total int, err error) {
	buf := make([]byte, maxChunk)
	for {
		n, err := body.Read(buf)
		total += n
		if n > 0 {
			if err := s.send(frame.TypeStream, buf[:n]); err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (s *server) invocationError(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.startAnswer(w, r.PathValue("id"), errorResponding); !ok {
		return
	}
	defer s.endAnswer()
	body, tooLarge, err := readBody(r)
	if err != nil || tooLarge {
		s.failAnswer(tooLarge, err)
		refuseBody(w, tooLarge, err)
		return
	}
	s.reply(w, s.answer(frame.TypeError, errorBody(body, r.Header.Get(errorTypeHeader)), len(body)))
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
	refuse(w, http.StatusBadRequest, "TruncatedHTTPRequest", fmt.Sprintf("HTTP request detected as truncated: %v", err))
}

// trailerError is the error that a runtime found after it had begun to answer, or nil.
func trailerError(trailer http.Header) []byte {
	kind, encoded := trailer.Get(errorTypeHeader), trailer.Get(errorBodyHeader)
	if kind == "" && encoded == "" {
		return nil
	}
	body, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		body = []byte(encoded)
	}
	return errorBody(body, kind)
}

// errorBody is what the caller gets for a runtime's error: the runtime's own JSON, whose shape differs from language to
// language, with the type that its header names if it has none itself. What is no JSON object becomes the message.
func errorBody(body []byte, kind string) []byte {
	if kind == "" {
		kind = "Runtime.Unknown"
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || fields == nil {
		out, _ := json.Marshal(frame.Error{Type: kind, Message: string(body)}) // a plain struct
		return out
	}
	var known string
	if json.Unmarshal(fields["errorType"], &known) == nil && known != "" {
		return body
	}
	fields["errorType"], _ = json.Marshal(kind) // a string
	out, _ := json.Marshal(fields)              // was JSON before
	return out
}
