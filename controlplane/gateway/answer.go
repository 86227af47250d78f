package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

var errAnswer = errors.New("not an answer in payload format 2.0")

// answer is what a function says in payload format 2.0.
type answer struct {
	status  int
	header  []headerField
	cookies []string
	body    []byte
	// typed tells that header holds a Content-Type.
	typed bool
}

type headerField struct{ name, value string }

// parseAnswer reads a function's answer: an object with statusCode is a response, every other JSON value is the body
// of one with status 200, and so is nothing at all. The result may alias payload. An error means 502.
func parseAnswer(payload []byte) (*answer, error) {
	s := &scanner{b: payload}
	switch s.peek() {
	case '{':
	case 0:
		return &answer{status: http.StatusOK}, nil
	default:
		return bareAnswer(payload)
	}
	f, err := readFields(s)
	if err == nil {
		err = s.end()
	}
	if err != nil {
		if a, ok := bufferedStream(payload); ok {
			return a, nil
		}
		return nil, fmt.Errorf("%w: %w", errAnswer, err)
	}
	if f.status == nil {
		return bareAnswer(payload)
	}
	return f.answer()
}

// fields is the members of an answer that mean something, as JSON text.
type fields struct {
	status, header, cookies, body, base64 []byte
}

func readFields(s *scanner) (f fields, err error) {
	err = s.object(func(key []byte) error {
		value, err := s.skip()
		if err != nil || string(value) == "null" {
			return err
		}
		switch string(key) {
		case "statusCode":
			f.status = value
		case "headers":
			f.header = value
		case "cookies":
			f.cookies = value
		case "body":
			f.body = value
		case "isBase64Encoded":
			f.base64 = value
		}
		return nil
	})
	return f, err
}

func (f fields) answer() (*answer, error) {
	a := &answer{}
	var err error
	if a.status, err = readStatus(f.status); err != nil {
		return nil, err
	}
	if f.header != nil {
		if err := a.readHeader(f.header); err != nil {
			return nil, err
		}
	}
	if f.cookies != nil {
		if err := a.readCookies(f.cookies); err != nil {
			return nil, err
		}
	}
	if f.body != nil {
		if a.body, err = readBody(f.body, f.base64); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// readStatus takes a number or digits in a string, from 200 to 599.
func readStatus(b []byte) (int, error) {
	digits := strings.Trim(string(b), `"`)
	n, err := strconv.Atoi(digits)
	if err != nil || len(digits) != 3 || n < 200 || n > 599 {
		return 0, fmt.Errorf("%w: statusCode %s", errAnswer, b)
	}
	return n, nil
}

func (a *answer) readHeader(b []byte) error {
	if b[0] != '{' {
		return fmt.Errorf("%w: headers is no object", errAnswer)
	}
	s := &scanner{b: b}
	a.header = make([]headerField, 0, 8)
	return s.object(func(key []byte) error {
		value, err := readScalar(s)
		if err != nil || value == nil {
			return err
		}
		name := http.CanonicalHeaderKey(string(key))
		a.typed = a.typed || name == "Content-Type"
		a.header = append(a.header, headerField{name, string(value)})
		return nil
	})
}

// readScalar reads a string, number or boolean as text; nil for null.
func readScalar(s *scanner) ([]byte, error) {
	switch s.peek() {
	case '"':
		b, err := s.str()
		if b == nil {
			b = []byte{}
		}
		return b, err
	case '{', '[':
		return nil, fmt.Errorf("%w: a header's value is no string", errAnswer)
	}
	b, err := s.skip()
	if string(b) == "null" {
		return nil, err
	}
	return b, err
}

func (a *answer) readCookies(b []byte) error {
	if b[0] != '[' {
		return fmt.Errorf("%w: cookies is no array", errAnswer)
	}
	s := &scanner{b: b}
	return s.array(func() error {
		if s.peek() != '"' {
			return fmt.Errorf("%w: a cookie is no string", errAnswer)
		}
		c, err := s.str()
		a.cookies = append(a.cookies, string(c))
		return err
	})
}

func readBody(b, isBase64 []byte) ([]byte, error) {
	if b[0] != '"' {
		return nil, fmt.Errorf("%w: body is no string", errAnswer)
	}
	body, err := (&scanner{b: b}).str()
	switch string(isBase64) {
	case "", "false":
		return body, err
	case "true":
		out := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
		n, err := base64.StdEncoding.Decode(out, body)
		if err != nil {
			return nil, fmt.Errorf("%w: body is no base64: %w", errAnswer, err)
		}
		return out[:n], nil
	}
	return nil, fmt.Errorf("%w: isBase64Encoded is no boolean", errAnswer)
}

// bareAnswer takes any JSON value as a body of type application/json: strings without their quotes, all else without
// insignificant space.
func bareAnswer(payload []byte) (*answer, error) {
	s := &scanner{b: payload}
	if s.peek() == '"' {
		body, err := s.str()
		if err == nil {
			err = s.end()
		}
		return &answer{status: http.StatusOK, body: body}, err
	}
	var compact bytes.Buffer
	compact.Grow(len(payload))
	if err := json.Compact(&compact, payload); err != nil {
		return nil, fmt.Errorf("%w: %w", errAnswer, err)
	}
	return &answer{status: http.StatusOK, body: compact.Bytes()}, nil
}

// bufferedStream reads an answer that a streaming function wrote while it was called without streaming.
func bufferedStream(payload []byte) (*answer, bool) {
	p := prelude{}
	a, rest, done := p.add(payload)
	if !done || a == nil {
		return nil, false
	}
	a.body = rest
	return a, true
}

// hopByHop tells of headers that concern one connection only, or that this server makes itself.
func hopByHop(canonical string) bool {
	switch canonical {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// writeHeader puts status, headers and cookies of a on w. A negative length leaves Content-Length to net/http; cors
// tells that the URL's configuration decides over CORS, not the function.
func (a *answer) writeHeader(w http.ResponseWriter, length int, defaultType string, cors bool) {
	h := w.Header()
	if !a.typed && bodyAllowed(a.status) {
		h["Content-Type"] = []string{defaultType}
	}
	for _, f := range a.header {
		if ownedHeader(f.name) || cors && corsHeader(f.name) {
			continue
		}
		h[f.name] = append(h[f.name], f.value)
	}
	if len(a.cookies) > 0 {
		h["Set-Cookie"] = append(h["Set-Cookie"], a.cookies...)
	}
	if length >= 0 && bodyAllowed(a.status) {
		h["Content-Length"] = []string{strconv.Itoa(length)}
	}
	w.WriteHeader(a.status)
}

// ownedHeader tells of headers that the gateway makes, whatever the function says.
func ownedHeader(canonical string) bool {
	return hopByHop(canonical) || canonical == "Content-Length" || canonical == "X-Amzn-Requestid" || canonical == "X-Amzn-Trace-Id"
}

func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}
