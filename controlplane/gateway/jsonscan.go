package gateway

import (
	"errors"
	"unicode/utf16"
	"unicode/utf8"
)

var errJSON = errors.New("invalid JSON")

// maxDepth is how deep arrays and objects may nest, as in encoding/json.
const maxDepth = 10000

// scanner reads JSON strictly (RFC 8259) from b and allocates only for strings that hold escapes.
type scanner struct {
	b     []byte
	i     int
	depth int
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// peek is the next byte that isn't space, 0 at the end.
func (s *scanner) peek() byte {
	s.space()
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// end checks that nothing but space is left.
func (s *scanner) end() error {
	s.space()
	if s.i != len(s.b) {
		return errJSON
	}
	return nil
}

// skip passes over one value of any kind and returns its text.
func (s *scanner) skip() ([]byte, error) {
	c := s.peek()
	start := s.i
	var err error
	switch {
	case c == '{':
		err = s.object(func([]byte) error { _, err := s.skip(); return err })
	case c == '[':
		err = s.array(func() error { _, err := s.skip(); return err })
	case c == '"':
		_, _, err = s.rawString()
	case c == '-' || '0' <= c && c <= '9':
		err = s.number()
	case c == 't':
		err = s.literal("true")
	case c == 'f':
		err = s.literal("false")
	case c == 'n':
		err = s.literal("null")
	default:
		err = errJSON
	}
	return s.b[start:s.i], err
}

// object calls member for each key, which must read the value.
func (s *scanner) object(member func(key []byte) error) error {
	return s.list('}', func() error {
		if s.peek() != '"' {
			return errJSON
		}
		key, err := s.str()
		if err != nil {
			return err
		}
		if s.peek() != ':' {
			return errJSON
		}
		s.i++
		return member(key)
	})
}

// array calls element for each element, which must read it.
func (s *scanner) array(element func() error) error { return s.list(']', element) }

// list reads what stands between an opening bracket, which is next, and closing.
func (s *scanner) list(closing byte, item func() error) error {
	s.i++
	if s.depth++; s.depth > maxDepth {
		return errJSON
	}
	defer func() { s.depth-- }()
	if s.peek() == closing {
		s.i++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.i++
		case closing:
			s.i++
			return nil
		default:
			return errJSON
		}
	}
}

func (s *scanner) literal(want string) error {
	if len(s.b)-s.i < len(want) || string(s.b[s.i:s.i+len(want)]) != want {
		return errJSON
	}
	s.i += len(want)
	return nil
}

func (s *scanner) number() error {
	if s.at('-') {
		s.i++
	}
	switch {
	case s.at('0'):
		s.i++
	case s.digits() == 0:
		return errJSON
	}
	if s.at('.') {
		s.i++
		if s.digits() == 0 {
			return errJSON
		}
	}
	if s.at('e') || s.at('E') {
		s.i++
		if s.at('+') || s.at('-') {
			s.i++
		}
		if s.digits() == 0 {
			return errJSON
		}
	}
	return nil
}

func (s *scanner) at(c byte) bool { return s.i < len(s.b) && s.b[s.i] == c }

func (s *scanner) digits() (n int) {
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
		n++
	}
	return n
}

// str reads a string, which is next. The result may alias the input.
func (s *scanner) str() ([]byte, error) {
	raw, plain, err := s.rawString()
	if err != nil || plain {
		return raw, err
	}
	return unescape(raw)
}

// rawString returns what stands between the quotes, and whether it holds neither escapes nor invalid UTF-8.
func (s *scanner) rawString() (raw []byte, plain bool, err error) {
	s.i++
	start, ascii, escaped := s.i, true, false
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			raw = s.b[start:s.i]
			s.i++
			return raw, !escaped && (ascii || utf8.Valid(raw)), nil
		case c < ' ':
			return nil, false, errJSON
		case c == '\\':
			escaped = true
			n := escapeSize(s.b[s.i:])
			if n == 0 {
				return nil, false, errJSON
			}
			s.i += n
		default:
			ascii = ascii && c < utf8.RuneSelf
			s.i++
		}
	}
	return nil, false, errJSON
}

// escapeSize is the length of the escape that b starts with, 0 if it is wrong.
func escapeSize(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if _, ok := hex4(b[2:]); ok {
			return 6
		}
	}
	return 0
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// unescape decodes what rawString returned.
func unescape(raw []byte) ([]byte, error) {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); {
		c := raw[i]
		if c == '\\' {
			n := 0
			out, n = appendUnescaped(out, raw[i:])
			i += n
			continue
		}
		if c < utf8.RuneSelf {
			out = append(out, c)
			i++
			continue
		}
		r, size := utf8.DecodeRune(raw[i:])
		out = utf8.AppendRune(out, r)
		i += size
	}
	return out, nil
}

// appendUnescaped decodes the valid escape that b starts with, or the surrogate pair.
func appendUnescaped(out, b []byte) ([]byte, int) {
	switch c := b[1]; c {
	case 'b':
		return append(out, '\b'), 2
	case 'f':
		return append(out, '\f'), 2
	case 'n':
		return append(out, '\n'), 2
	case 'r':
		return append(out, '\r'), 2
	case 't':
		return append(out, '\t'), 2
	case 'u':
	default:
		return append(out, c), 2
	}
	r, _ := hex4(b[2:])
	if utf16.IsSurrogate(r) {
		if len(b) >= 12 && b[6] == '\\' && b[7] == 'u' {
			low, _ := hex4(b[8:])
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				return utf8.AppendRune(out, pair), 12
			}
		}
		r = utf8.RuneError
	}
	return utf8.AppendRune(out, r), 6
}
