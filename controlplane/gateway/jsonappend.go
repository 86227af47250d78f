package gateway

import "unicode/utf8"

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. What isn't UTF-8 becomes U+FFFD, as in encoding/json.
func appendString[S string | []byte](dst []byte, s S) []byte {
	dst = append(dst, '"')
	dst = appendEscaped(dst, s)
	return append(dst, '"')
}

// appendEscaped is appendString without the quotes.
func appendEscaped[S string | []byte](dst []byte, s S) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if plain(c) {
				i++
				continue
			}
			dst = appendEscape(append(dst, s[start:i]...), c)
			i++
			start = i
			continue
		}
		size := runeSize(s[i:min(i+utf8.UTFMax, len(s))])
		if size == 0 {
			dst = append(append(dst, s[start:i]...), "\ufffd"...)
			i++
			start = i
			continue
		}
		i += size
	}
	return append(dst, s[start:]...)
}

// runeSize is the length of the UTF-8 sequence that s starts with, 0 if it is none.
func runeSize[S string | []byte](s S) int {
	r, size := utf8.DecodeRuneInString(string(s))
	if r == utf8.RuneError && size == 1 {
		return 0
	}
	return size
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// plain tells of ASCII characters that stand for themselves in a JSON string.
func plain(c byte) bool { return c >= ' ' && c != '"' && c != '\\' }

// appendLower appends s with its ASCII letters in lower case, JSON-escaped.
func appendLower(dst []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c >= utf8.RuneSelf || !plain(c) {
			return appendEscaped(dst[:len(dst)-i], toLower(s))
		}
		dst = append(dst, c)
	}
	return dst
}

func toLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
