package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestPageTokensAreBoundToTheirQuery(t *testing.T) {
	p, err := parsePage(10, "", "functions", "default", "")
	if err != nil {
		t.Fatal(err)
	}
	token := p.token("hello")
	again, err := parsePage(20, token, "functions", "default", "")
	if err != nil || again.after != "hello" {
		t.Fatalf("%+v, %v", again, err)
	}
	bad := []string{"x", "AAAA", token[:len(token)-1], token + "A", token + "=", strings.ToUpper(token), strings.Repeat("A", 40)}
	for _, token := range bad {
		if _, err := parsePage(10, token, "functions", "default", ""); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN) {
			t.Errorf("%q: %v", token, err)
		}
	}
	for _, query := range [][]string{{"functions", "other", ""}, {"functions", "default", "prefix"}, {"versions", "default", ""}, {"functions", "default"}} {
		if _, err := parsePage(10, token, query...); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN) {
			t.Errorf("%q: %v", query, err)
		}
	}
}

func TestPageSizes(t *testing.T) {
	for size, want := range map[int32]int{0: 50, 1: 1, 1000: 1000} {
		if p, err := parsePage(size, ""); err != nil || p.size != want {
			t.Errorf("%d: %d, %v", size, p.size, err)
		}
	}
	for _, size := range []int32{-1, 1001} {
		if _, err := parsePage(size, ""); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

func TestPagesEndBeforeClientsRefuseThem(t *testing.T) {
	var functions []*mayflyv1.Function
	for i := range 100 {
		functions = append(functions, &mayflyv1.Function{Name: fmt.Sprintf("f%03d", i), StateReason: strings.Repeat("x", 100_000)})
	}
	p := page{size: 1000}
	var seen []string
	for range 10 {
		rest := slices.DeleteFunc(slices.Clone(functions), func(f *mayflyv1.Function) bool { return f.GetName() <= p.after })
		taken, next := take(p, slices.Values(rest), (*mayflyv1.Function).GetName, all)
		for _, f := range taken {
			seen = append(seen, f.GetName())
		}
		if len(taken) > 32 {
			t.Fatalf("%d items of 100 kB in one page", len(taken))
		}
		if next == "" {
			break
		}
		after, ok := p.open(next)
		if !ok {
			t.Fatal("own token refused")
		}
		p.after = after
	}
	if len(seen) != 100 || !slices.IsSorted(seen) {
		t.Errorf("saw %d", len(seen))
	}
	// An item that is too large by itself still comes.
	if taken, _ := take(page{size: 1}, slices.Values([]*mayflyv1.Function{{StateReason: strings.Repeat("x", 4<<20)}}), (*mayflyv1.Function).GetName, all); len(taken) != 1 {
		t.Error("a large item blocks its list")
	}
}

func FuzzPageToken(f *testing.F) {
	p := page{size: 10, query: "functions\x00default"}
	f.Add(p.token("hello"))
	f.Add("")
	f.Add("AQAAAAAAAAAAaGVsbG8")
	f.Fuzz(func(t *testing.T, token string) {
		after, ok := p.open(token)
		if ok && p.token(after) != token {
			t.Fatalf("%q was taken for %q", token, p.token(after))
		}
	})
}

func FuzzFunctionRef(f *testing.F) {
	for _, text := range []string{"hello", "hello:1", "hello:$LATEST", "arn:aws:lambda:us-east-1:000000000000:function:hello:live", "000000000000:function:hello", ":", "a:b:c"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := parseFunctionRef(text)
		if err == nil && !isName(ref.name, maxFunctionName) {
			t.Fatalf("%q: %+v", text, ref)
		}
	})
}
