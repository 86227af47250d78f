package runtimes

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// imageTime is the time stamp of every file: the release day of bookworm. Builds differ only if packages do.
func imageTime() time.Time { return time.Date(2023, 6, 10, 0, 0, 0, 0, time.UTC) }

// writeTar writes dir as a canonical tar: sorted names, one time stamp, owner 0, canonical modes, no hard links.
// Devices, sockets and FIFOs are left out. It returns the sum of the sizes of regular files, in bytes.
func writeTar(w io.Writer, dir string) (int64, error) {
	tw := tar.NewWriter(w)
	var size int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		n, err := writeEntry(tw, dir, path, d)
		size += n
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("archive %s: %w", dir, err)
	}
	if err := tw.Close(); err != nil {
		return 0, fmt.Errorf("archive %s: %w", dir, err)
	}
	return size, nil
}

func writeEntry(tw *tar.Writer, dir, path string, d fs.DirEntry) (int64, error) {
	info, err := d.Info()
	if err != nil {
		return 0, err
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return 0, err
	}
	h := &tar.Header{Name: rel, Mode: canonicalMode(info.Mode()), ModTime: imageTime()}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, rel+"/"
	case info.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return 0, err
		}
	case info.Mode().IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	default:
		return 0, nil
	}
	if err := tw.WriteHeader(h); err != nil {
		return 0, err
	}
	if h.Typeflag != tar.TypeReg {
		return 0, nil
	}
	return h.Size, copyFile(tw, path)
}

// canonicalMode keeps whether a file can be executed, and the sticky bit: the builder's umask must not show, an image
// has no secrets and no set-uid programs.
func canonicalMode(m fs.FileMode) int64 {
	switch {
	case m&fs.ModeSymlink != 0:
		return 0o777
	case m&fs.ModeSticky != 0:
		return 0o1777
	case m.IsDir() || m.Perm()&0o111 != 0:
		return 0o755
	}
	return 0o644
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// digestPrefix is in front of the hex digits of a digest; names of directories go without.
const digestPrefix = "sha256:"

// treeDigest returns the digest of dir as a canonical tar, and the size of its files in bytes.
func treeDigest(dir string) (string, int64, error) {
	h := sha256.New()
	size, err := writeTar(h, dir)
	if err != nil {
		return "", 0, err
	}
	return digestPrefix + hex.EncodeToString(h.Sum(nil)), size, nil
}

// saveTree writes dir as a compressed canonical tar that appears at path when it is whole.
func saveTree(path, dir string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	zw, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	if _, err = writeTar(zw, dir); err != nil {
		return err
	}
	if err = zw.Close(); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// loadTree unpacks what saveTree wrote into dir, which must exist.
func loadTree(path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	zr, err := zstd.NewReader(f)
	if err != nil {
		return err
	}
	defer zr.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", path, err)
		}
		if err := readEntry(root, h, tr); err != nil {
			return fmt.Errorf("unpack %s: %s: %w", path, h.Name, err)
		}
	}
}

func readEntry(root *os.Root, h *tar.Header, r io.Reader) error {
	name := strings.TrimSuffix(h.Name, "/")
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, 0o700); err != nil {
			return err
		}
		return root.Chmod(name, h.FileInfo().Mode())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeReg:
		return readFile(root, name, h, r)
	}
	return fmt.Errorf("unexpected type %q", h.Typeflag)
}

func readFile(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Chmod(h.FileInfo().Mode()); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}
