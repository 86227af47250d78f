package gateway

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "plain", "q\"b\\s/", "\x00\x1f\n\r\t\b\f", "\u2028é€😀", "\xff\xc3", "\xed\xa0\x80", "a\x80b", "\xf0\x9f\x98"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := appendString([]byte("x"), s)
		if !bytes.Equal(got, appendString([]byte("x"), []byte(s))) {
			t.Fatalf("string and bytes of %q differ", s)
		}
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var a, b string
		if err := json.Unmarshal(got[1:], &a); err != nil {
			t.Fatalf("%q: %s: %v", s, got, err)
		}
		if err := json.Unmarshal(want, &b); err != nil {
			t.Fatal(err)
		}
		if a != b {
			t.Fatalf("%q became %q, want %q", s, a, b)
		}
	})
}

func FuzzAppendLower(f *testing.F) {
	f.Add("X-Amzn-Trace-Id")
	f.Add("Ab\"C\xc3\xa9D")
	f.Fuzz(func(t *testing.T, s string) {
		want := appendEscaped([]byte("p"), toLower(s))
		if got := appendLower([]byte("p"), s); !bytes.Equal(got, want) {
			t.Fatalf("%q: %q, want %q", s, got, want)
		}
	})
}

func jsonSeeds() []string {
	return []string{
		``, `{}`, `[]`, `""`, `null`, `true`, `fals`, `0`, `-0`, `01`, `1.`, `.5`, `1e5`, `1E+`, `-`, `"a`, `"\u12"`, `"\ud83d\ude00"`,
		`"\ud83d"`, `"\ud83d\u0041"`, `"\x"`, "\"\x01\"", "\"\xff\"", `{"a":1,}`, `{"a" : [1, {"b":null}] } `, `{a:1}`, `[1 2]`, `[,]`,
		`{"statusCode":200,"headers":{"A":"b"},"body":"x"}`, ` 1 `, "\v1", `{"a":1}x`, strings.Repeat("[", 20), `"` + "\u2028" + `"`,
	}
}

func FuzzScannerAgreesWithEncodingJSON(f *testing.F) {
	for _, s := range jsonSeeds() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &scanner{b: b}
		_, err := s.skip()
		if err == nil {
			err = s.end()
		}
		if valid := json.Valid(b); valid != (err == nil) {
			t.Fatalf("%q: valid is %v, scanner says %v", b, valid, err)
		}
		var want string
		if json.Unmarshal(b, &want) != nil || string(bytes.TrimSpace(b)) == "null" {
			return
		}
		s = &scanner{b: b}
		s.space()
		if got, err := s.str(); err != nil || string(got) != want {
			t.Fatalf("%q: %q, %v; want %q", b, got, err, want)
		}
	})
}

func TestScannerDepth(t *testing.T) {
	deep := func(n int) []byte { return []byte(strings.Repeat("[", n) + strings.Repeat("]", n)) }
	for n, ok := range map[int]bool{maxDepth: true, maxDepth + 1: false} {
		if _, err := (&scanner{b: deep(n)}).skip(); (err == nil) != ok {
			t.Errorf("depth %d: %v", n, err)
		}
	}
}
