package api

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Limits of a deployment package.
const (
	maxUnpacked     = 262_144_000 // bytes
	maxEntries      = 100_000
	maxEntryPath    = 1024 // bytes
	maxEntryDepth   = 64
	maxEntryPart    = 255 // bytes, the file system's
	maxDirectory    = 64 << 20
	flagEncrypted   = 1 << 0
	flagStrong      = 1 << 6
	flagMasked      = 1 << 13
	directoryHeader = "PK\x01\x02"
)

// inspectZip refuses what can't be unpacked safely, by inflating all of it, and returns the unpacked size in bytes. The error is INVALID_CODE and names the entry.
func inspectZip(ctx context.Context, content io.ReaderAt, size int64) (unpacked int64, err error) {
	guard := &directoryGuard{ReaderAt: content}
	archive, err := zip.NewReader(guard, size)
	if guard.err != nil {
		return 0, guard.err
	}
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return 0, invalidCode("the deployment package is no zip file: %v", err)
	}
	guard.opened = true
	if len(archive.File) > maxEntries {
		return 0, tooManyEntries()
	}
	t := newTree()
	for _, entry := range archive.File {
		if err := t.add(entry); err != nil {
			return 0, err
		}
	}
	if t.count == 0 {
		return 0, invalidCode("the zip holds no file")
	}
	for _, entry := range archive.File {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := t.inflate(entry); err != nil {
			return 0, err
		}
	}
	return t.unpacked, t.checkLinks()
}

// directoryGuard ends the reading of a central directory that would take too much memory: the number of entries that a zip declares is not to be trusted.
type directoryGuard struct {
	io.ReaderAt
	opened  bool
	entries int
	read    int
	err     error
}

// ReadAt counts what is read of the directory.
func (g *directoryGuard) ReadAt(p []byte, off int64) (int, error) {
	n, err := g.ReaderAt.ReadAt(p, off)
	if g.opened {
		return n, err
	}
	g.read += n
	g.entries += bytes.Count(p[:n], []byte(directoryHeader))
	switch {
	case g.entries > 2*maxEntries:
		g.err = tooManyEntries()
	case g.read > maxDirectory:
		g.err = invalidCode("the zip's directory is larger than %d bytes", maxDirectory)
	}
	if g.err != nil {
		return 0, g.err
	}
	return n, err
}

// tree is what a zip would unpack to.
type tree struct {
	files map[string]bool
	dirs  map[string]bool
	// links are symbolic links with their targets, which inflate fills in.
	links    map[string]string
	count    int
	unpacked int64
}

func newTree() *tree {
	return &tree{files: map[string]bool{}, dirs: map[string]bool{}, links: map[string]string{}}
}

func (t *tree) add(entry *zip.File) error {
	if err := checkEntryName(entry.Name); err != nil {
		return err
	}
	if entry.Flags&(flagEncrypted|flagStrong|flagMasked) != 0 {
		return badEntry(entry, "is encrypted")
	}
	if entry.Method != zip.Store && entry.Method != zip.Deflate {
		return badEntry(entry, fmt.Sprintf("uses compression method %d; only store and deflate are supported", entry.Method))
	}
	// The rest is compared before it is made: sizes are 64 bits of the sender's choice.
	if entry.UncompressedSize64 > uint64(maxUnpacked-t.unpacked) {
		return badEntry(entry, fmt.Sprintf("makes the package larger than %d bytes unpacked", maxUnpacked))
	}
	t.unpacked += int64(entry.UncompressedSize64)
	return t.place(entry, path.Clean(entry.Name))
}

// place gives an entry its place, which no other may have.
func (t *tree) place(entry *zip.File, name string) error {
	_, isLink := t.links[name]
	if t.files[name] || isLink {
		return badEntry(entry, "appears twice")
	}
	if name == "." && !entry.Mode().IsDir() {
		return badEntry(entry, "has no name")
	}
	switch mode := entry.Mode(); {
	case mode.Type() == fs.ModeDir:
		if entry.UncompressedSize64 > 0 {
			return badEntry(entry, "is a directory with content")
		}
	case mode.Type() == fs.ModeSymlink:
		t.links[name] = ""
	case mode.IsRegular():
		t.files[name] = true
		t.count++
	default:
		return badEntry(entry, fmt.Sprintf("is neither a file, a directory nor a symbolic link (%v)", mode))
	}
	if entry.Mode().IsDir() {
		t.dirs[name] = true
	} else if t.dirs[name] {
		return badEntry(entry, "is a directory too")
	}
	return t.placeParents(entry, path.Dir(name))
}

// placeParents makes the directories above an entry, until one that exists. Whether a later entry is in their way, that entry's place tells.
func (t *tree) placeParents(entry *zip.File, dir string) error {
	for ; dir != "." && !t.dirs[dir]; dir = path.Dir(dir) {
		if _, isLink := t.links[dir]; isLink || t.files[dir] {
			return badEntry(entry, fmt.Sprintf("lies below %q, which is no directory", dir))
		}
		t.dirs[dir] = true
	}
	return nil
}

func checkEntryName(name string) error {
	switch {
	case name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return invalidCode("zip entry %.200q has a name that is empty, no UTF-8, or has control characters", name)
	case name[0] == '/':
		return invalidCode("zip entry %.200q has an absolute path", name)
	case strings.Contains(name, "\\"):
		return invalidCode("zip entry %.200q has a backslash in its path: use \"/\"", name)
	case len(name) > maxEntryPath || strings.Count(name, "/") > maxEntryDepth:
		return invalidCode("zip entry %.200q has a path of more than %d bytes or %d levels", name, maxEntryPath, maxEntryDepth)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return invalidCode("zip entry %.200q has \"..\" in its path", name)
		}
		if len(part) > maxEntryPart {
			return invalidCode("zip entry %.300q has a name of more than %d bytes", name, maxEntryPart)
		}
	}
	return nil
}

// inflate reads an entry to its end, which compares size and checksum.
func (t *tree) inflate(entry *zip.File) error {
	name := path.Clean(entry.Name)
	_, isLink := t.links[name]
	if isLink && entry.UncompressedSize64 > maxEntryPath {
		return badEntry(entry, fmt.Sprintf("is a symbolic link of more than %d bytes", maxEntryPath))
	}
	r, err := entry.Open()
	if err != nil {
		return damaged(entry, err)
	}
	defer r.Close()
	var target strings.Builder
	sink := io.Discard
	if isLink {
		sink = &target
	}
	// One byte more than declared: a bomb that declares too little is found without inflating all of it.
	n, err := io.Copy(sink, io.LimitReader(r, int64(entry.UncompressedSize64)+1))
	if err != nil {
		return damaged(entry, err)
	}
	if n != int64(entry.UncompressedSize64) {
		return badEntry(entry, "is larger than it declares")
	}
	if isLink {
		t.links[name] = target.String()
	}
	return nil
}

func damaged(entry *zip.File, err error) error {
	if errors.Is(err, zip.ErrChecksum) {
		return badEntry(entry, "is damaged: its checksum is wrong")
	}
	return badEntry(entry, fmt.Sprintf("is damaged: %v", err))
}

func badEntry(entry *zip.File, what string) error {
	return invalidCode("zip entry %.200q %s", entry.Name, what)
}

func tooManyEntries() error {
	return invalidCode("the zip has more than %d entries", maxEntries)
}

func invalidCode(format string, args ...any) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE, format, args...)
}
