// Package bundle turns what a person deploys (a file, a folder, a zip) into a deployment package.
//
// What belongs here: walking folders, .mayflyignore, writing zips that come out the same byte for byte.
// What does not: uploading them (cli), and judging strangers' zips (the control plane does, for every client).
package bundle

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MaxUnpackedBytes is how large the files of a package may be together.
const MaxUnpackedBytes = 262144000

// ErrUsage marks errors that the person who deploys can mend: a wrong path, a wrong file.
var ErrUsage = errors.New("cannot package")

// Options says how Open packages.
type Options struct {
	// SingleName is the name, inside the package, of a file that is deployed alone; empty keeps its own name.
	// A file that is renamed becomes executable.
	SingleName string
}

// Package is a deployment package on disk, open for reading from its start.
type Package struct {
	File *os.File
	// Digest is "sha256:" and 64 hexadecimal digits, of the zip.
	Digest string
	// SizeBytes is the size of the zip.
	SizeBytes int64
	// Files counts what is in it; 0 if the zip was made by somebody else.
	Files     int
	temporary bool
}

// Open packages path: a folder is zipped, a file that is no zip is zipped alone, a zip is taken as it is.
// Close the package after use: it may be a temporary file.
func Open(path string, o Options) (*Package, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, unusable(path, err)
	}
	switch {
	case info.IsDir():
		return build(func() ([]entry, error) { return walk(path) })
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w %s: it is neither a file nor a folder", ErrUsage, path)
	case strings.EqualFold(filepath.Ext(path), ".zip"):
		return openZip(path)
	default:
		return build(func() ([]entry, error) { return []entry{single(path, info, o)}, nil })
	}
}

// Close closes the package and removes it if it is temporary.
func (p *Package) Close() error {
	err := p.File.Close()
	if p.temporary {
		err = errors.Join(err, os.Remove(p.File.Name()))
	}
	return err
}

// unusable names the path once: errors of the system name it, too.
func unusable(path string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return fmt.Errorf("%w %s: %w", ErrUsage, path, err)
}

func single(path string, info os.FileInfo, o Options) entry {
	e := entry{name: filepath.Base(path), path: path, mode: info.Mode(), size: info.Size()}
	if o.SingleName != "" && o.SingleName != e.name {
		e.name, e.mode = o.SingleName, info.Mode()|0o111
	}
	return e
}

func openZip(path string) (*Package, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unusable(path, err)
	}
	p := &Package{File: f}
	if err := p.checkZip(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w %s: %w", ErrUsage, path, err)
	}
	if err := p.measure(); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// checkZip finds a file that merely ends in .zip before it is uploaded.
func (p *Package) checkZip() error {
	info, err := p.File.Stat()
	if err != nil {
		return err
	}
	if _, err := zip.NewReader(p.File, info.Size()); err != nil {
		return fmt.Errorf("it is called .zip but is none: %w", err)
	}
	return nil
}

func build(list func() ([]entry, error)) (_ *Package, err error) {
	entries, err := list()
	if err != nil {
		return nil, err
	}
	if err := checkSize(entries); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp("", "mayfly-*.zip")
	if err != nil {
		return nil, fmt.Errorf("create a temporary file for the package: %w", err)
	}
	p := &Package{File: f, Files: len(entries), temporary: true}
	if err := errors.Join(writeZip(f, entries), p.measure()); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func checkSize(entries []entry) error {
	if len(entries) == 0 {
		return fmt.Errorf("%w: there is no file to deploy, or .mayflyignore leaves out every one", ErrUsage)
	}
	var total int64
	for _, e := range entries {
		total += e.size
	}
	if total > MaxUnpackedBytes {
		return fmt.Errorf("%w: the files are %d bytes together, more than the limit of %d: leave some out by .mayflyignore",
			ErrUsage, total, MaxUnpackedBytes)
	}
	return nil
}

// measure fills digest and size, and rewinds.
func (p *Package) measure() error {
	if _, err := p.File.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the package: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(h, p.File)
	if err != nil {
		return fmt.Errorf("read the package: %w", err)
	}
	p.SizeBytes, p.Digest = n, "sha256:"+hex.EncodeToString(h.Sum(nil))
	if _, err := p.File.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the package: %w", err)
	}
	return nil
}
