package api

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

type zipEntry struct {
	name    string
	content string
	mode    fs.FileMode
	flags   uint16
	method  uint16
	// size and crc are declared instead of the true ones, if set.
	size uint64
	crc  uint32
}

// makeZip writes entries as they are told, also what zip.Writer would refuse.
func makeZip(t testing.TB, entries ...zipEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{
			Name: e.name, Method: e.method, Flags: e.flags, CRC32: crc32.ChecksumIEEE([]byte(e.content)),
			CompressedSize64: uint64(len(e.content)), UncompressedSize64: uint64(len(e.content)),
		}
		h.SetMode(e.mode)
		if e.mode.Perm() == 0 {
			h.SetMode(e.mode | 0o644)
		}
		if e.size != 0 {
			h.UncompressedSize64 = e.size
		}
		if e.crc != 0 {
			h.CRC32 = e.crc
		}
		f, err := w.CreateRaw(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func inspect(data []byte) (int64, error) {
	return inspectZip(context.Background(), bytes.NewReader(data), int64(len(data)))
}

func file(name string) zipEntry { return zipEntry{name: name, content: "content of " + name} }

func link(name, target string) zipEntry {
	return zipEntry{name: name, content: target, mode: fs.ModeSymlink | 0o777}
}

func dir(name string) zipEntry { return zipEntry{name: name, mode: fs.ModeDir | 0o755} }

func TestGoodZips(t *testing.T) {
	for name, entries := range map[string][]zipEntry{
		"one file":           {file("hello.py")},
		"folders":            {dir("pkg/"), file("pkg/a.py"), file("pkg/deep/er/b.py"), dir("pkg/deep/")},
		"file before folder": {file("pkg/a.py"), dir("pkg/")},
		"dot":                {dir("./"), file("./a.py")},
		"links inside":       {file("lib/libx.so.1"), link("lib/libx.so", "libx.so.1"), link("x", "lib/../lib/libx.so"), link("l", "lib")},
		"link up":            {file("a"), link("b/c/up", "../../a")},
		"dangling":           {file("a"), link("b", "nothing/here")},
		"names":              {file("..a"), file("a..b"), file("...") /* no dots of danger */, file("ünïcödé/日本.py"), file("with space")},
		"empty file":         {{name: "__init__.py"}},
		"setuid bit":         {{name: "tool", content: "x", mode: fs.ModeSetuid | 0o755}},
	} {
		var want int64
		for _, e := range entries {
			want += int64(len(e.content))
		}
		if got, err := inspect(makeZip(t, entries...)); err != nil || got != want {
			t.Errorf("%s: %d bytes, want %d: %v", name, got, want, err)
		}
	}
}

func TestBadZips(t *testing.T) {
	long := strings.Repeat("a", 300)
	for name, test := range map[string]struct {
		entries []zipEntry
		words   []string
	}{
		"no entry":               {nil, []string{"no file"}},
		"folders only":           {[]zipEntry{dir("a/"), dir("b/")}, []string{"no file"}},
		"absolute":               {[]zipEntry{file("/etc/passwd")}, []string{`"/etc/passwd"`, "absolute"}},
		"dotdot":                 {[]zipEntry{file("ok"), file("../evil")}, []string{`"../evil"`, `".."`}},
		"dotdot inside":          {[]zipEntry{file("a/../../evil")}, []string{`".."`}},
		"dotdot at end":          {[]zipEntry{file("a/..")}, []string{`".."`}},
		"backslash":              {[]zipEntry{file(`a\..\evil`)}, []string{"backslash"}},
		"NUL":                    {[]zipEntry{file("a\x00b")}, []string{"control"}},
		"newline":                {[]zipEntry{file("a\nb")}, []string{"control"}},
		"no UTF-8":               {[]zipEntry{file("a\xff")}, []string{"UTF-8"}},
		"no name":                {[]zipEntry{file("")}, []string{"empty"}},
		"dot as file":            {[]zipEntry{file(".")}, []string{"no name"}},
		"long part":              {[]zipEntry{file(long)}, []string{"255"}},
		"long path":              {[]zipEntry{file(strings.Repeat("abc/", 300) + "x")}, []string{"1024"}},
		"deep path":              {[]zipEntry{file(strings.Repeat("a/", 100) + "x")}, []string{"64"}},
		"link outside":           {[]zipEntry{link("l", "../x"), file("a")}, []string{`"l"`, `"../x"`, "outside"}},
		"absolute link":          {[]zipEntry{link("l", "/etc/passwd"), file("a")}, []string{"relative"}},
		"empty link":             {[]zipEntry{link("l", ""), file("a")}, []string{"relative"}},
		"link through a link":    {[]zipEntry{file("a/b/x"), link("a/b/root", "../.."), link("a/b/out", "root/../y")}, []string{`"a/b/out"`, "outside"}},
		"link in a cycle":        {[]zipEntry{file("x"), link("a", "b"), link("b", "a")}, []string{"too many links"}},
		"long link":              {[]zipEntry{file("x"), link("a", strings.Repeat("b/", 600))}, []string{"1024"}},
		"file below a link":      {[]zipEntry{link("d", "elsewhere"), file("d/x")}, []string{`"d/x"`, "no directory"}},
		"link above a file":      {[]zipEntry{file("d/x"), link("d", "elsewhere")}, []string{`"d"`, "directory too"}},
		"file below a file":      {[]zipEntry{file("d"), file("d/x")}, []string{"no directory"}},
		"twice":                  {[]zipEntry{file("a"), file("a")}, []string{"twice"}},
		"twice by another name":  {[]zipEntry{file("b/a"), file("b/./a")}, []string{"twice"}},
		"twice, link then file":  {[]zipEntry{link("a", "b"), file("a")}, []string{"twice"}},
		"device":                 {[]zipEntry{{name: "dev/sda", mode: fs.ModeDevice | 0o600}, file("a")}, []string{`"dev/sda"`, "neither"}},
		"character device":       {[]zipEntry{{name: "null", mode: fs.ModeDevice | fs.ModeCharDevice | 0o600}}, []string{"neither"}},
		"FIFO":                   {[]zipEntry{{name: "pipe", mode: fs.ModeNamedPipe | 0o600}}, []string{"neither"}},
		"socket":                 {[]zipEntry{{name: "sock", mode: fs.ModeSocket | 0o600}}, []string{"neither"}},
		"link with slash":        {[]zipEntry{{name: "l/", mode: fs.ModeSymlink | 0o777}}, []string{"neither"}},
		"encrypted":              {[]zipEntry{{name: "secret", content: "x", flags: 1}}, []string{`"secret"`, "encrypted"}},
		"strongly encrypted":     {[]zipEntry{{name: "secret", content: "x", flags: 1 << 6}}, []string{"encrypted"}},
		"unknown method":         {[]zipEntry{{name: "lzma", content: "x", method: 14}}, []string{"method 14"}},
		"wrong checksum":         {[]zipEntry{{name: "a", content: "x", crc: 7}}, []string{`"a"`, "checksum"}},
		"declares too much":      {[]zipEntry{{name: "a", content: "x", size: 2}}, []string{"damaged"}},
		"declares too little":    {[]zipEntry{{name: "a", content: "xyz", size: 2}}, []string{`"a"`}},
		"not deflated":           {[]zipEntry{{name: "a", content: "\xff\xff\xff", method: zip.Deflate, size: 10}}, []string{"damaged"}},
		"bomb by sum":            {[]zipEntry{{name: "a", content: "x", size: maxUnpacked}, {name: "b", content: "x", size: 1}}, []string{`"b"`, "262144000"}},
		"bomb by overflow":       {[]zipEntry{{name: "a", content: "x", size: 1 << 63}, {name: "b", content: "x", size: 1 << 63}}, []string{`"a"`, "262144000"}},
		"directory with content": {[]zipEntry{{name: "d", content: "x", mode: fs.ModeDir | 0o755}, file("a")}, []string{"with content"}},
	} {
		_, err := inspect(makeZip(t, test.entries...))
		if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, word := range test.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q doesn't say %q", name, err, word)
			}
		}
	}
}

func TestNoZips(t *testing.T) {
	good := makeZip(t, file("a"), file("b"))
	for name, data := range map[string][]byte{
		"nothing": nil, "text": []byte("def handler(event, context): pass"), "gzip": []byte("\x1f\x8b\x08\x00aaaaaaaaaaaaaaaaaaaaaaaaa"),
		"cut": good[:len(good)-30], "head only": good[:20],
	} {
		if _, err := inspect(data); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE) || !strings.Contains(err.Error(), "no zip") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBombIsNotInflated makes a zip whose one small stream inflates to far more than it declares.
func TestBombIsNotInflated(t *testing.T) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("bomb")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, io.LimitReader(zeroReader{}, 8<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := b.Bytes()
	header := bytes.LastIndex(data, []byte(directoryHeader))
	binary.LittleEndian.PutUint32(data[header+24:], 1000)
	counting := &countingReader{ReaderAt: bytes.NewReader(data)}
	if _, err := inspectZip(context.Background(), counting, int64(len(data))); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE) {
		t.Fatal(err)
	}
	if counting.n > len(data)/2+8192 {
		t.Errorf("%d of %d bytes were read", counting.n, len(data))
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type countingReader struct {
	io.ReaderAt
	n int
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.n += n
	return n, err
}

func TestTooManyEntries(t *testing.T) {
	entries := make([]zipEntry, 0, maxEntries+1)
	for i := range maxEntries + 1 {
		entries = append(entries, zipEntry{name: fmt.Sprintf("d%d/f%d", i%100, i)})
	}
	if _, err := inspect(makeZip(t, entries[:maxEntries]...)); err != nil {
		t.Errorf("%d entries: %v", maxEntries, err)
	}
	if _, err := inspect(makeZip(t, entries...)); !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE) || !strings.Contains(err.Error(), "100000") {
		t.Errorf("%d entries: %v", maxEntries+1, err)
	}
}

// TestLyingDirectory has a directory of far more entries than its end record says: reading must stop early.
func TestLyingDirectory(t *testing.T) {
	var b bytes.Buffer
	one := makeZip(t, zipEntry{name: "f"})
	start := bytes.Index(one, []byte(directoryHeader))
	end := bytes.LastIndex(one, []byte("PK\x05\x06"))
	b.Write(one[:start])
	const n = 1_000_000
	for range n {
		b.Write(one[start:end])
	}
	record := bytes.Clone(one[end:])
	binary.LittleEndian.PutUint16(record[8:], uint16(n%65536))
	binary.LittleEndian.PutUint16(record[10:], uint16(n%65536))
	binary.LittleEndian.PutUint32(record[12:], uint32(n*(end-start)))
	b.Write(record)
	counting := &countingReader{ReaderAt: bytes.NewReader(b.Bytes())}
	_, err := inspectZip(context.Background(), counting, int64(b.Len()))
	if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE) || !strings.Contains(err.Error(), "100000") {
		t.Fatal(err)
	}
	if counting.n > b.Len()/4 {
		t.Errorf("%d of %d bytes were read", counting.n, b.Len())
	}
}

func TestInspectEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	data := makeZip(t, file("a"))
	if _, err := inspectZip(ctx, bytes.NewReader(data), int64(len(data))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// FuzzInspectZip wants no panic, and of what is taken that it unpacks within bounds to places inside.
func FuzzInspectZip(f *testing.F) {
	f.Add(makeZip(f, file("a"), dir("d/"), link("l", "d/../a")))
	f.Add(makeZip(f, link("a/b/root", "../.."), link("a/b/out", "root/../y")))
	f.Add(makeZip(f, zipEntry{name: "a", content: "x", size: 2}))
	f.Add([]byte("PK\x05\x06"))
	f.Fuzz(func(t *testing.T, data []byte) {
		unpacked, err := inspect(data)
		if err != nil {
			if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatalf("taken, but %v", err)
		}
		var sum int64
		for _, entry := range archive.File {
			if !fs.ValidPath(strings.TrimSuffix(strings.TrimPrefix(path.Clean(entry.Name), "./"), "/")) {
				t.Fatalf("taken with entry %q", entry.Name)
			}
			sum += int64(entry.UncompressedSize64)
		}
		if sum != unpacked || unpacked > maxUnpacked {
			t.Fatalf("unpacked %d, sum %d", unpacked, sum)
		}
	})
}

// FuzzFollow compares the walk over links with a plain definition: it never leaves the root.
func FuzzFollow(f *testing.F) {
	f.Add("a/b", "../c", "c", "a/../..")
	f.Add("a", "b", "b", "a")
	f.Fuzz(func(t *testing.T, name1, target1, name2, target2 string) {
		if strings.HasSuffix(name1, "/") || strings.HasSuffix(name2, "/") || len(name1+name2) > 1000 {
			return // zip.Writer makes no such links
		}
		data := makeZip(t, file("x"), link(name1, target1), link(name2, target2))
		if _, err := inspect(data); err != nil {
			return
		}
		links := map[string]string{path.Clean(name1): target1, path.Clean(name2): target2}
		for name := range links {
			if escapes(links, name, 0) {
				t.Fatalf("links %q: %q leads outside", links, name)
			}
		}
	})
}

// escapes follows a path by rewriting it as text: the first link in it is replaced by its target.
func escapes(links map[string]string, at string, depth int) bool {
	var done []string
	parts := strings.Split(at, "/")
	for i, part := range parts {
		switch part {
		case "", ".":
			continue
		case "..":
			if len(done) == 0 {
				return true
			}
			done = done[:len(done)-1]
			continue
		}
		here := strings.Join(append(append([]string{}, done...), part), "/")
		if target, ok := links[here]; ok {
			if depth > 100 {
				return true
			}
			rest := append(append(append([]string{}, done...), target), parts[i+1:]...)
			return strings.HasPrefix(target, "/") || escapes(links, strings.Join(rest, "/"), depth+1)
		}
		done = append(done, part)
	}
	return false
}
