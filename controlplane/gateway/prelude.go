package gateway

import (
	"net/http"
	"strings"
)

// maxPrelude is the largest prelude in bytes; a stream that starts with a longer JSON object has none.
const maxPrelude = 64 << 10

const preludeEnd = "\x00\x00\x00\x00\x00\x00\x00\x00"

// prelude looks at the start of a streamed answer for status and headers: a JSON object, then eight NUL bytes, as
// Lambda's http-integration-response. It holds chunks back only while the object is incomplete.
type prelude struct {
	held     []byte
	scanned  int
	depth    int
	inString bool
	escaped  bool
}

// add takes the next chunk. Once done, it returns the answer's head, or nil for a stream without a prelude, and the
// bytes that belong to the body.
func (p *prelude) add(chunk []byte) (head *answer, body []byte, done bool) {
	p.held = append(p.held, chunk...)
	if len(p.held) == 0 {
		return nil, nil, false
	}
	end := p.objectEnd()
	if end < 0 {
		return nil, p.held, p.held[0] != '{' || len(p.held) > maxPrelude
	}
	after := p.held[end:]
	if len(after) < len(preludeEnd) {
		return nil, p.held, !strings.HasPrefix(preludeEnd, string(after))
	}
	if string(after[:len(preludeEnd)]) != preludeEnd {
		return nil, p.held, true
	}
	head = parsePrelude(p.held[:end])
	if head == nil {
		return nil, p.held, true
	}
	return head, after[len(preludeEnd):], true
}

// objectEnd is where the JSON object that held starts with ends, -1 while it hasn't. It looks at each byte once.
func (p *prelude) objectEnd() int {
	if p.held[0] != '{' {
		return -1
	}
	for ; p.scanned < len(p.held); p.scanned++ {
		if p.scanned > 0 && p.depth == 0 {
			return p.scanned
		}
		p.step(p.held[p.scanned])
	}
	if p.depth == 0 {
		return p.scanned
	}
	return -1
}

func (p *prelude) step(c byte) {
	switch {
	case p.escaped:
		p.escaped = false
	case p.inString:
		p.escaped = c == '\\'
		p.inString = c != '"'
	case c == '"':
		p.inString = true
	case c == '{' || c == '[':
		p.depth++
	case c == '}' || c == ']':
		p.depth--
	}
}

// parsePrelude reads statusCode (default 200), headers and cookies; nil if it is no prelude.
func parsePrelude(b []byte) *answer {
	s := &scanner{b: b}
	f, err := readFields(s)
	if err != nil {
		return nil
	}
	if f.status == nil {
		f.status = []byte("200")
	}
	f.body, f.base64 = nil, nil
	a, err := f.answer()
	if err != nil {
		return nil
	}
	return a
}

// plainStream is the head of a stream that names none.
func plainStream() *answer { return &answer{status: http.StatusOK} }
