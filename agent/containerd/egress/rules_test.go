package egress

import (
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// TestRules compares the table with its golden text. Whether the kernel does as it says is for agent/containerd to test.
func TestRules(t *testing.T) {
	r := ruleset{
		prefix: "mfabc123", relay: 5353,
		pool: newAddresses(netip.MustParsePrefix("100.64.16.0/20"), netip.MustParsePrefix("fd00:1:2:3::/64")),
	}
	got := text(r)
	const path = "testdata/rules.txt"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the rules have changed; if that is meant, rewrite %s with -update:\n%s", path, got)
	}
}

func text(r ruleset) string {
	var out strings.Builder
	for _, c := range r.chains() {
		fmt.Fprintf(&out, "chain %s", c.name)
		if c.hook != nil {
			fmt.Fprintf(&out, " (%s, hook %d, priority %d)", c.kind, *c.hook, *c.priority)
		}
		out.WriteString("\n")
		for _, rule := range c.rules {
			var words []string
			for _, e := range rule {
				words = append(words, describe(e))
			}
			fmt.Fprintf(&out, "  %s\n", strings.Join(words, "; "))
		}
	}
	var sets []string
	for s, elements := range r.sets(&nftables.Table{}) {
		var words []string
		for _, e := range elements {
			words = append(words, describeElement(e))
		}
		slices.Sort(words)
		sets = append(sets, "set "+s.Name+"\n  "+strings.Join(words, "\n  ")+"\n")
	}
	slices.Sort(sets)
	out.WriteString(strings.Join(sets, ""))
	return out.String()
}

func describeElement(e nftables.SetElement) string {
	a, _ := netip.AddrFromSlice(e.Key)
	if e.IntervalEnd {
		return a.String() + " end"
	}
	return a.String()
}

func describe(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Verdict:
		return strings.TrimSpace(fmt.Sprintf("%s %s", map[expr.VerdictKind]string{
			expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictGoto: "goto", expr.VerdictJump: "jump",
		}[e.Kind], e.Chain))
	case *expr.Cmp:
		return fmt.Sprintf("%s %s", map[expr.CmpOp]string{expr.CmpOpEq: "==", expr.CmpOpNeq: "!="}[e.Op], printable(e.Data))
	case *expr.Immediate:
		return fmt.Sprintf("reg %d = %s", e.Register, printable(e.Data))
	case *expr.Bitwise:
		return "& " + hex.EncodeToString(e.Mask)
	}
	return fields(e)
}

// fields names an expression and those of its fields that are set.
func fields(e expr.Any) string {
	v := reflect.ValueOf(e).Elem()
	words := []string{strings.ToLower(v.Type().Name())}
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() {
			words = append(words, fmt.Sprintf("%s=%v", v.Type().Field(i).Name, f))
		}
	}
	return strings.Join(words, " ")
}

func printable(b []byte) string {
	if len(b) > 2 && b[0] == 'm' {
		return string(b)
	}
	if a, ok := netip.AddrFromSlice(b); ok && (b[0] == 100 || len(b) == 16) {
		return a.String()
	}
	return hex.EncodeToString(b)
}
