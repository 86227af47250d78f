package table_test

import (
	"errors"
	"fmt"
	"iter"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mayfly-faas/mayfly/controlplane/state/table"
)

func open(t *testing.T, fs vfs.FS) *table.Table {
	t.Helper()
	tbl, err := table.Open(table.Config{Dir: "t", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	return tbl
}

func row(k, v string) table.Row { return table.Row{Key: []byte(k), Value: []byte(v)} }

func write(t *testing.T, tbl *table.Table, rows ...table.Row) {
	t.Helper()
	if err := tbl.Write(rows); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, v table.View, prefix string) string {
	t.Helper()
	var out []string
	for r, err := range v.Rows([]byte(prefix)) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s=%s", r.Key, r.Value))
	}
	return fmt.Sprint(out)
}

func want(t *testing.T, tbl *table.Table, rows string) {
	t.Helper()
	v, err := tbl.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if got := list(t, v, ""); got != rows {
		t.Fatalf("the table has %s, want %s", got, rows)
	}
}

func seq(err error, rows ...table.Row) iter.Seq2[table.Row, error] {
	return func(yield func(table.Row, error) bool) {
		for _, r := range rows {
			if !yield(r, nil) {
				return
			}
		}
		if err != nil {
			yield(table.Row{}, err)
		}
	}
}

func TestWriteReadReopen(t *testing.T) {
	fs := vfs.NewMem()
	tbl := open(t, fs)
	write(t, tbl, row("b", "2"), row("a", "1"), row("ba", ""), row("c", "3"))
	write(t, tbl, table.Row{Key: []byte("c")}, row("a", "one"))
	want(t, tbl, "[a=one b=2 ba=]")
	if v, err := tbl.Get([]byte("ba")); err != nil || v == nil || len(v) != 0 {
		t.Fatalf("an empty value is %v, %v", v, err)
	}
	if v, err := tbl.Get([]byte("c")); err != nil || v != nil {
		t.Fatalf("a deleted row is %q, %v", v, err)
	}
	old, err := tbl.View()
	if err != nil {
		t.Fatal(err)
	}
	write(t, tbl, row("bb", "4"))
	if got := list(t, old, "b"); got != "[b=2 ba=]" {
		t.Fatalf("a view shows %s", got)
	}
	if err := errors.Join(old.Close(), tbl.Close()); err != nil {
		t.Fatal(err)
	}
	tbl = open(t, fs)
	defer tbl.Close()
	want(t, tbl, "[a=one b=2 ba= bb=4]")
}

func TestReplace(t *testing.T) {
	fs := vfs.NewMem()
	tbl := open(t, fs)
	write(t, tbl, row("a", "1"), row("z", "26"))
	for what, rows := range map[string]iter.Seq2[table.Row, error]{
		"an error":        seq(errors.New("lost"), row("n", "1")),
		"an early error":  seq(errors.New("lost")),
		"disorder":        seq(nil, row("n", "1"), row("m", "1")),
		"a row twice":     seq(nil, row("n", "1"), row("n", "1")),
		"no key":          seq(nil, row("", "1")),
		"no value":        seq(nil, table.Row{Key: []byte("n")}),
		"a key too large": seq(nil, row("\xff", "1")),
	} {
		if err := tbl.Replace(rows); err == nil {
			t.Errorf("replaced in spite of %s", what)
		}
		want(t, tbl, "[a=1 z=26]")
	}
	old, err := tbl.View()
	if err != nil {
		t.Fatal(err)
	}
	if err := tbl.Replace(seq(nil, row("\x00m", "0"), row("m", "13"))); err != nil {
		t.Fatal(err)
	}
	want(t, tbl, "[\x00m=0 m=13]")
	if got := list(t, old, ""); got != "[a=1 z=26]" {
		t.Fatalf("an old view shows %s", got)
	}
	old.Close()
	write(t, tbl, row("n", "14"))
	if err := tbl.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("t")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if len(n) > 8 && n[len(n)-8:] == ".restore" {
			t.Errorf("%s was left", n)
		}
	}
	tbl = open(t, fs)
	defer tbl.Close()
	want(t, tbl, "[\x00m=0 m=13 n=14]")
}

// What a restore that was killed left behind goes at the next start.
func TestLeftovers(t *testing.T) {
	fs := vfs.NewMem()
	open(t, fs).Close()
	f, err := fs.Create("t/000000.restore", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	tbl := open(t, fs)
	defer tbl.Close()
	if _, err := fs.Stat("t/000000.restore"); err == nil {
		t.Fatal("the file is still there")
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	tbl, err := table.Open(table.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer tbl.Close()
	if other, err := table.Open(table.Config{Dir: dir}); err == nil {
		other.Close()
		t.Fatal("the table was opened twice")
	}
	if _, err := table.Open(table.Config{}); err == nil {
		t.Fatal("a table without a directory was opened")
	}
}

// More rows than one file of a replacement takes.
func TestReplaceWithManyFiles(t *testing.T) {
	tbl := open(t, vfs.NewMem())
	defer tbl.Close()
	value := make([]byte, 1<<20)
	for i := range value {
		value[i] = byte(i * i >> 3)
	}
	many := func(yield func(table.Row, error) bool) {
		for i := range 150 {
			if !yield(table.Row{Key: fmt.Appendf(nil, "%03d", i), Value: value}, nil) {
				return
			}
		}
	}
	if err := tbl.Replace(many); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"000", "070", "149"} {
		if v, err := tbl.Get([]byte(k)); err != nil || len(v) != len(value) {
			t.Fatalf("row %s has %d bytes, %v", k, len(v), err)
		}
	}
}
