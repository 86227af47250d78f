package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// IgnoreFile is the name of the file that says what of a folder is left out.
const IgnoreFile = ".mayflyignore"

// entry is one file or link of a package.
type entry struct {
	// name is the slash-separated path inside the package.
	name string
	// path is where the file is now.
	path string
	mode fs.FileMode
	size int64
	// link is the target of a symbolic link, empty for a file.
	link string
}

// walk lists what of the folder root belongs into its package, in order of name.
func walk(root string) ([]entry, error) {
	rules, err := readIgnore(root)
	if err != nil {
		return nil, err
	}
	var entries []entry
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name, err := relative(root, p)
		if err != nil {
			return err
		}
		if rules.Match(name, d.IsDir()) {
			return skip(d)
		}
		if d.IsDir() {
			return nil
		}
		e, err := entryOf(name, p, d)
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return nil, unusable(root, err)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

func readIgnore(root string) (*Ignore, error) {
	text, err := os.ReadFile(filepath.Join(root, IgnoreFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: read %s: %w", ErrUsage, IgnoreFile, err)
	}
	rules, err := ParseIgnore(builtIn + string(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUsage, IgnoreFile, err)
	}
	return rules, nil
}

func relative(root, p string) (string, error) {
	rel, err := filepath.Rel(root, p)
	return filepath.ToSlash(rel), err
}

func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

func entryOf(name, p string, d fs.DirEntry) (entry, error) {
	info, err := d.Info()
	if err != nil {
		return entry{}, err
	}
	e := entry{name: name, path: p, mode: info.Mode(), size: info.Size()}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		e.link, err = linkTarget(name, p)
		return e, err
	case info.Mode().IsRegular():
		return e, nil
	default:
		return entry{}, fmt.Errorf("%s is neither a file, a folder nor a link: name it in %s", name, IgnoreFile)
	}
}

// linkTarget refuses links that lead out of the folder: they would lead to something else in a sandbox.
func linkTarget(name, p string) (string, error) {
	target, err := os.Readlink(p)
	if err != nil {
		return "", err
	}
	inside := path.Join(path.Dir(name), filepath.ToSlash(target))
	if filepath.IsAbs(target) || inside == ".." || strings.HasPrefix(inside, "../") {
		return "", fmt.Errorf("the link %s leads to %s, outside of the folder: replace it by a copy or name it in %s", name, target, IgnoreFile)
	}
	return filepath.ToSlash(target), nil
}
