package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var outputs = []string{"table", "json", "yaml"}

func (a *App) checkOutput() error {
	if !slices.Contains(outputs, a.global.output) {
		return usagef("--output %q is none of %s", a.global.output, strings.Join(outputs, ", "))
	}
	return nil
}

// table is what people see; the first column names the rows.
type table struct {
	header []string
	rows   [][]string
}

// print writes m as --output says; t is how it looks as a table.
func (a *App) print(m proto.Message, t table) error {
	if a.global.output == "table" {
		return a.printTable(t)
	}
	text, err := marshal(m)
	if err != nil {
		return err
	}
	return a.printJSON(text)
}

// printValue is print for what is no message.
func (a *App) printValue(v any, t table) error {
	if a.global.output == "table" {
		return a.printTable(t)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return a.printJSON(text)
}

// marshal is protojson without its random spaces; fields stand in the order of the proto, unset ones with their defaults.
func marshal(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("print: %w", err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil {
		return nil, fmt.Errorf("print: %w", err)
	}
	return out.Bytes(), nil
}

func (a *App) printJSON(text []byte) error {
	var out bytes.Buffer
	if a.global.output == "yaml" {
		if err := toYAML(&out, text); err != nil {
			return err
		}
	} else {
		if err := json.Indent(&out, text, "", "  "); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		out.WriteByte('\n')
	}
	return a.write(out.Bytes())
}

func (a *App) write(text []byte) error {
	if _, err := a.Stdout.Write(text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// toYAML keeps the order of the fields: JSON is parsed as the YAML that it is, and written in YAML's own style.
func toYAML(w io.Writer, text []byte) error {
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	plain(&node)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func plain(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode && len(n.Content) > 0 || n.Kind == yaml.ScalarNode && n.ShortTag() != "!!str" {
		n.Style = 0
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		n.Style, n.Tag = 0, "!!str"
	}
	for _, c := range n.Content {
		plain(c)
	}
}

func (a *App) printTable(t table) error {
	var out bytes.Buffer
	if a.global.quiet {
		for _, row := range t.rows {
			fmt.Fprintln(&out, row[0])
		}
		return a.write(out.Bytes())
	}
	tw := tabwriter.NewWriter(&out, 0, 8, 3, ' ', 0)
	if len(t.header) > 0 {
		fmt.Fprintln(tw, strings.Join(t.header, "\t"))
	}
	for _, row := range t.rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return a.write(a.embolden(trimLines(out.Bytes()), len(t.header) > 0))
}

// trimLines drops the padding that tabwriter leaves after an empty last cell.
func trimLines(text []byte) []byte {
	lines := strings.Split(string(text), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return []byte(strings.Join(lines, "\n"))
}

// embolden makes the header stand out on a terminal.
func (a *App) embolden(text []byte, header bool) []byte {
	if !header || !a.terminal(a.Stdout) || a.Getenv("NO_COLOR") != "" {
		return text
	}
	head, rest, _ := bytes.Cut(text, []byte("\n"))
	return slices.Concat([]byte("\x1b[1m"), head, []byte("\x1b[0m\n"), rest)
}

// terminal tells whether w is one; fd is only asked of real files.
func (a *App) terminal(w any) bool {
	f, ok := w.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(f.Fd()))
}

// note tells the person what happens, apart from the output.
func (a *App) note(format string, args ...any) {
	if !a.global.quiet {
		fmt.Fprintf(a.Stderr, format+"\n", args...)
	}
}

// done tells that a change was made: on stdout, since it is what the command has to say.
func (a *App) done(name, format string, args ...any) error {
	if a.global.quiet {
		return a.write([]byte(name + "\n"))
	}
	return a.write(fmt.Appendf(nil, format+"\n", args...))
}

func enumName(e fmt.Stringer, prefix string) string {
	name := strings.TrimPrefix(e.String(), prefix)
	if name == "UNSPECIFIED" {
		return "-"
	}
	return name
}

// stateName is an enum as prose: "Active".
func stateName(e fmt.Stringer, prefix string) string {
	name := enumName(e, prefix)
	return name[:1] + strings.ToLower(name[1:])
}

func timeOf(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// ageOf is how long ago t was, in its largest unit.
func ageOf(t, now time.Time) string {
	age := max(now.Sub(t), 0)
	for _, u := range []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
		if age >= u.size {
			return fmt.Sprintf("%d%s", age/u.size, u.name)
		}
	}
	return fmt.Sprintf("%ds", age/time.Second)
}

func durationOf(d *durationpb.Duration) string {
	if d == nil {
		return "-"
	}
	return d.AsDuration().String()
}

// sizeOf is a number of bytes for people, in binary units.
func sizeOf(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// changed reports a change: the resource as it is now for programs, a sentence for people.
func (a *App) changed(m proto.Message, name, format string, args ...any) error {
	if a.global.output != "table" {
		return a.print(m, table{})
	}
	return a.done(name, format, args...)
}
