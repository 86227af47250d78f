package gateway

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestParseAnswer(t *testing.T) {
	type want struct {
		status  int
		header  []headerField
		cookies []string
		body    string
	}
	cases := map[string]want{
		`{"statusCode":201,"body":"hi"}`:                                       {201, nil, nil, "hi"},
		`{"statusCode": 200, "body": "\"Hello World!\""}`:                      {200, nil, nil, `"Hello World!"`},
		`{"statusCode":"404"}`:                                                 {404, nil, nil, ""},
		`{"statusCode":200,"body":null,"headers":null,"cookies":null}`:         {200, nil, nil, ""},
		`{"statusCode":200,"isBase64Encoded":true,"body":"AAEC"}`:              {200, nil, nil, "\x00\x01\x02"},
		`{"isBase64Encoded":true,"body":"","statusCode":204}`:                  {204, nil, nil, ""},
		`{"statusCode":200,"headers":{"x-a":"1","B":2,"c":true,"d":null}}`:     {200, []headerField{{"X-A", "1"}, {"B", "2"}, {"C", "true"}}, nil, ""},
		`{"statusCode":200,"cookies":["a=1; Path=/","b=\u00e9"]}`:              {200, nil, []string{"a=1; Path=/", "b=é"}, ""},
		`{"statusCode":200,"statusCode":202,"body":"a","body":"b","extra":{}}`: {202, nil, nil, "b"},
		// Bare values.
		`{"hello": "world"}`:             {200, nil, nil, `{"hello":"world"}`},
		`{"statusCode":null,"body":"x"}`: {200, nil, nil, `{"statusCode":null,"body":"x"}`},
		`{"StatusCode":200}`:             {200, nil, nil, `{"StatusCode":200}`},
		`["hello", 3, true]`:             {200, nil, nil, `["hello",3,true]`},
		`"hello\n\"you\""`:               {200, nil, nil, "hello\n\"you\""},
		` 3 `:                            {200, nil, nil, "3"},
		`3.1`:                            {200, nil, nil, "3.1"},
		`true`:                           {200, nil, nil, "true"},
		`null`:                           {200, nil, nil, "null"},
		``:                               {200, nil, nil, ""},
		`{}`:                             {200, nil, nil, "{}"},
		`{"statusCode":201}` + preludeEnd + "streamed": {201, nil, nil, "streamed"},
	}
	for in, w := range cases {
		a, err := parseAnswer([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		got := want{a.status, a.header, a.cookies, string(a.body)}
		if !reflect.DeepEqual(got, w) {
			t.Errorf("%s:\n got %+v\nwant %+v", in, got, w)
		}
	}
}

func TestParseAnswerRefuses(t *testing.T) {
	for _, in := range []string{
		`hello`, `{`, `{"statusCode":200}x`, `"a`, `{"statusCode":200,}`,
		`{"statusCode":"abc"}`, `{"statusCode":199}`, `{"statusCode":600}`, `{"statusCode":200.5}`, `{"statusCode":"+200"}`, `{"statusCode":"0200"}`, `{"statusCode":true}`, `{"statusCode":{}}`,
		`{"statusCode":200,"body":{"a":1}}`, `{"statusCode":200,"body":5}`, `{"statusCode":200,"headers":[]}`, `{"statusCode":200,"headers":"x"}`,
		`{"statusCode":200,"headers":{"a":["b"]}}`, `{"statusCode":200,"cookies":"a=b"}`, `{"statusCode":200,"cookies":[1]}`,
		`{"statusCode":200,"body":"!!","isBase64Encoded":true}`, `{"statusCode":200,"body":"AA==","isBase64Encoded":"yes"}`,
	} {
		if a, err := parseAnswer([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %+v", in, a)
		}
	}
}

// The hand-written parser and one on encoding/json agree on status and body.
func FuzzParseAnswer(f *testing.F) {
	for _, s := range jsonSeeds() {
		f.Add([]byte(s))
	}
	f.Add([]byte(`{"statusCode":200,"headers":{"a":"b"},"cookies":["c"],"body":"AAEC","isBase64Encoded":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil || strings.TrimSpace(string(b)) == "" || strings.Contains(string(b), "\x00") {
			return
		}
		if !json.Valid(b) {
			t.Fatalf("%q: accepted, but no JSON", b)
		}
		var object map[string]json.RawMessage
		if json.Unmarshal(b, &object) != nil || object["statusCode"] == nil || string(object["statusCode"]) == "null" {
			if a.status != 200 || a.header != nil {
				t.Fatalf("%q: bare value became %+v", b, a)
			}
			return
		}
		if s := strings.Trim(string(object["statusCode"]), `"`); strconv.Itoa(a.status) != s {
			t.Fatalf("%q: status %d", b, a.status)
		}
		var body string
		if json.Unmarshal(object["body"], &body) == nil && string(object["isBase64Encoded"]) != "true" && body != string(a.body) {
			t.Fatalf("%q: body %q, want %q", b, a.body, body)
		}
	})
}

func TestPrelude(t *testing.T) {
	head := `{"statusCode":418,"headers":{"x-s":"a}\"{"},"cookies":["k=v"]}`
	cases := []struct {
		name, stream string
		status       int // 0: no prelude
		body         string
	}{
		{"with body", head + preludeEnd + "tea", 418, "tea"},
		{"no body", head + preludeEnd, 418, ""},
		{"no status", `{"headers":{}}` + preludeEnd + "x", 200, "x"},
		{"NUL in body", head + preludeEnd + "\x00a", 418, "\x00a"},
		{"plain text", "hello", 0, "hello"},
		{"JSON body", `{"a":1}` + "\n" + `{"b":2}`, 0, `{"a":1}` + "\n" + `{"b":2}`},
		{"seven NULs", head + preludeEnd[:7] + "x", 0, head + preludeEnd[:7] + "x"},
		{"broken prelude", `{"statusCode":"x"}` + preludeEnd + "y", 0, `{"statusCode":"x"}` + preludeEnd + "y"},
		{"object without end", `{"a":` + strings.Repeat("x", maxPrelude), 0, `{"a":` + strings.Repeat("x", maxPrelude)},
	}
	for _, c := range cases {
		for _, size := range []int{1, 3, 7, 1 << 20} {
			status, body := feedPrelude(c.stream, size)
			if status != c.status || body != c.body {
				t.Errorf("%s in chunks of %d: %d %q", c.name, size, status, body)
			}
		}
	}
}

// feedPrelude returns what reaches the client: status 0 if there was no prelude.
func feedPrelude(stream string, size int) (status int, body string) {
	p, decided := prelude{}, false
	for len(stream) > 0 {
		n := min(size, len(stream))
		chunk := stream[:n]
		stream = stream[n:]
		if decided {
			body += chunk
			continue
		}
		head, rest, done := p.add([]byte(chunk))
		if !done {
			continue
		}
		decided = true
		body = string(rest)
		if head != nil {
			status = head.status
		}
	}
	if !decided {
		body = string(p.held)
	}
	return status, body
}

// Text that can't be a prelude is not held back.
func TestPreludeHoldsBackNothingElse(t *testing.T) {
	for _, chunk := range []string{"hello", `{"line":1}` + "\n", `[1,`, " {", `{}x`} {
		p := prelude{}
		if _, body, done := p.add([]byte(chunk)); !done || string(body) != chunk {
			t.Errorf("%q is held back", chunk)
		}
	}
}
