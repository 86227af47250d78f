package code

import (
	"archive/zip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// MaxUnpacked is Lambda's limit for the code of a function, in bytes.
	MaxUnpacked = 262_144_000
	// MaxEntries is the most files, directories and links in a package.
	MaxEntries = 100_000

	maxName      = 4096
	maxPart      = 255
	maxDirectory = 16 << 20 // of the zip's own directory, in bytes
	maxTarget    = 4096
)

func invalid(format string, args ...any) *fault.Error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE, "deployment package: "+format, args...)
}

func tooLarge(format string, args ...any) *fault.Error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_CODE_TOO_LARGE, "deployment package: "+format, args...)
}

// item is a checked entry of a zip.
type item struct {
	file   *zip.File
	name   string // clean, relative
	target string // of a link
}

// archive is a checked zip: nothing in it is outside of its root, and nothing comes twice.
type archive struct {
	items []item
	size  int64 // unpacked, as declared
}

// CheckZip tells whether r is a zip that can be a function's code, and its unpacked size in bytes. It trusts no header:
// entries are read to their end.
func CheckZip(r io.ReaderAt, size int64) (int64, *fault.Error) {
	a, bad := readArchive(r, size)
	if bad != nil {
		return 0, bad
	}
	for _, it := range a.items {
		if it.file.Mode().IsRegular() {
			if err := copyEntry(io.Discard, it); err != nil {
				return 0, err
			}
		}
	}
	return a.size, nil
}

// budgetReader refuses to read more than left bytes, once: a zip whose directory is huge would fill the memory.
type budgetReader struct {
	io.ReaderAt
	left int64
}

var errDirectory = errors.New("directory too large")

// ReadAt implements io.ReaderAt.
func (b *budgetReader) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errDirectory
	}
	return b.ReaderAt.ReadAt(p, off)
}

func readArchive(r io.ReaderAt, size int64) (*archive, *fault.Error) {
	budget := &budgetReader{ReaderAt: r, left: maxDirectory}
	z, err := zip.NewReader(budget, size)
	switch {
	case errors.Is(err, errDirectory):
		return nil, tooLarge("more than %d entries", MaxEntries)
	case err != nil && !errors.Is(err, zip.ErrInsecurePath): // names are checked below
		return nil, invalid("not a zip file (%v)", err)
	case len(z.File) > MaxEntries:
		return nil, tooLarge("%d entries, the limit is %d", len(z.File), MaxEntries)
	}
	budget.left = 1 << 62
	a := &archive{}
	seen := map[string]fs.FileMode{}
	for _, f := range z.File {
		if err := a.add(f, seen); err != nil {
			return nil, err
		}
	}
	if err := a.checkParents(seen); err != nil {
		return nil, err
	}
	return a, a.checkLinks()
}

func (a *archive) add(f *zip.File, seen map[string]fs.FileMode) *fault.Error {
	name, bad := cleanName(f.Name)
	if bad != nil {
		return bad
	}
	kind := f.Mode().Type()
	if strings.HasSuffix(f.Name, "/") {
		kind = fs.ModeDir
	}
	switch {
	case kind != 0 && kind != fs.ModeDir && kind != fs.ModeSymlink:
		return invalid("%q is a device, pipe or socket; only files, directories and links are allowed", f.Name)
	case f.Flags&1 != 0:
		return invalid("%q is encrypted", f.Name)
	case f.Method != zip.Store && f.Method != zip.Deflate:
		return invalid("%q is compressed by method %d; use deflate", f.Name, f.Method)
	case name == ".":
		return nil
	}
	if before, ok := seen[name]; ok && (kind != fs.ModeDir || before != fs.ModeDir) {
		return invalid("%q comes twice", f.Name)
	}
	seen[name] = kind
	if f.UncompressedSize64 > MaxUnpacked || a.size+int64(f.UncompressedSize64) > MaxUnpacked { // checked before
		return tooLarge("more than %d bytes unpacked", MaxUnpacked)
	}
	it := item{file: f, name: name}
	if kind == fs.ModeSymlink {
		if it.target, bad = readTarget(f); bad != nil {
			return bad
		}
	}
	a.size += int64(f.UncompressedSize64) // at most MaxUnpacked
	a.items = append(a.items, it)
	return nil
}

func cleanName(name string) (string, *fault.Error) {
	switch {
	case name == "" || len(name) > maxName:
		return "", invalid("an entry's name has %d bytes; 1 to %d are allowed", len(name), maxName)
	case strings.HasPrefix(name, "/"):
		return "", invalid("%q is an absolute path", name)
	case strings.ContainsAny(name, "\\\x00"):
		return "", invalid("%q has a backslash or a zero byte in its name", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", invalid("%q leads out of the package", name)
		}
		if len(part) > maxPart {
			return "", invalid("%.40q… has more than %d bytes between two slashes", name, maxPart)
		}
	}
	return path.Clean(name), nil
}

func readTarget(f *zip.File) (string, *fault.Error) {
	in, err := f.Open()
	if err != nil {
		return "", invalid("link %q can't be read (%v)", f.Name, err)
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxTarget+1))
	target := string(b)
	switch {
	case err != nil:
		return "", invalid("link %q can't be read (%v)", f.Name, err)
	case len(target) > maxTarget || target == "" || strings.ContainsRune(target, 0):
		return "", invalid("link %q has no usable target", f.Name)
	case strings.HasPrefix(target, "/"):
		return "", invalid("link %q leads outside: its target %q is absolute", f.Name, target)
	}
	return target, nil
}

// checkParents refuses entries below a file or a link.
func (a *archive) checkParents(seen map[string]fs.FileMode) *fault.Error {
	for _, it := range a.items {
		for dir := path.Dir(it.name); dir != "."; dir = path.Dir(dir) {
			if kind, ok := seen[dir]; ok && kind != fs.ModeDir {
				return invalid("%q is below %q, which is no directory", it.name, dir)
			}
		}
	}
	return nil
}

// checkLinks refuses links whose target, by way of other links, is outside.
func (a *archive) checkLinks() *fault.Error {
	links := map[string]string{}
	for _, it := range a.items {
		if it.target != "" {
			links[it.name] = it.target
		}
	}
	for name := range links {
		if !staysInside(links, name) {
			return invalid("link %q leads outside or in a circle", name)
		}
	}
	return nil
}

// staysInside follows a link as the kernel would. It may lead to nothing, but not out.
func staysInside(links map[string]string, name string) bool {
	const maxHops = 40
	rest := strings.Split(name, "/")
	var at []string
	for hops := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
		case "..":
			if len(at) == 0 {
				return false
			}
			at = at[:len(at)-1]
		default:
			target, isLink := links[path.Join(append(slices.Clip(at), part)...)]
			if !isLink {
				at = append(slices.Clip(at), part)
				continue
			}
			if hops++; hops > maxHops {
				return false
			}
			rest = append(strings.Split(target, "/"), rest...)
		}
	}
	return true
}

// copyEntry copies an entry's content and checks its size and check sum.
func copyEntry(w io.Writer, it item) *fault.Error {
	in, err := it.file.Open()
	if err != nil {
		return invalid("%q can't be read (%v)", it.file.Name, err)
	}
	defer in.Close()
	size := int64(it.file.UncompressedSize64) // at most MaxUnpacked
	n, err := io.Copy(w, io.LimitReader(in, size+1))
	var pathErr *fs.PathError
	switch {
	case errors.As(err, &pathErr):
		return fault.Internal(err, "can't unpack %q", it.file.Name)
	case err != nil:
		return invalid("%q is damaged (%v)", it.file.Name, err)
	case n != size:
		return invalid("%q has another size than the zip says", it.file.Name)
	}
	return nil
}

// unpack checks a zip and writes it below dir, readable for everybody. It returns the unpacked size.
func unpack(ctx context.Context, zipFile *os.File, dir string) (int64, error) {
	info, err := zipFile.Stat()
	if err != nil {
		return 0, fault.Internal(err, "can't read the deployment package")
	}
	a, bad := readArchive(zipFile, info.Size())
	if bad != nil {
		return 0, bad
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // the sandbox's user reads it
		return 0, fault.Internal(err, "can't unpack")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fault.Internal(err, "can't unpack")
	}
	defer root.Close()
	if err := root.Chmod(".", 0o755); err != nil {
		return 0, fault.Internal(err, "can't unpack")
	}
	w := writer{root: root, made: map[string]bool{}}
	for _, links := range []bool{false, true} { // links last: nothing is written through one
		for _, it := range a.items {
			if (it.target != "") != links {
				continue
			}
			if err := errors.Join(ctx.Err(), w.write(it)); err != nil {
				return 0, err
			}
		}
	}
	return a.size, nil
}

// writer makes the entries of an archive below root.
type writer struct {
	root *os.Root
	made map[string]bool
}

func (w *writer) write(it item) error {
	if strings.HasSuffix(it.file.Name, "/") || it.file.Mode().IsDir() {
		return w.mkdir(it.name)
	}
	if err := w.mkdir(path.Dir(it.name)); err != nil {
		return err
	}
	if it.target != "" {
		return internal(w.root.Symlink(it.target, it.name))
	}
	return w.writeFile(it)
}

func (w *writer) mkdir(name string) error {
	if name == "." || w.made[name] {
		return nil
	}
	if err := w.mkdir(path.Dir(name)); err != nil {
		return err
	}
	w.made[name] = true
	if err := w.root.Mkdir(name, 0o755); err != nil {
		return internal(err)
	}
	return internal(w.root.Chmod(name, 0o755)) // whatever the umask
}

func (w *writer) writeFile(it item) error {
	out, err := w.root.OpenFile(filepath.FromSlash(it.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return internal(err)
	}
	if bad := copyEntry(out, it); bad != nil {
		return errors.Join(bad, out.Close())
	}
	// Everybody may read, and run what its owner may; never set-uid.
	mode := fs.FileMode(0o644)
	if it.file.Mode()&0o111 != 0 {
		mode = 0o755
	}
	return internal(errors.Join(out.Chmod(mode), out.Close()))
}

func internal(err error) error {
	if err == nil {
		return nil
	}
	return fault.Internal(err, "can't unpack the deployment package")
}
