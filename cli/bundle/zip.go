package bundle

import (
	"archive/zip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// epoch is the time that every entry has, the first that a zip can say: times of files must not change the digest.
var epoch = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// writeZip writes entries in their order, with times and owners left out and modes reduced to "executable or not".
func writeZip(w io.Writer, entries []entry) error {
	zw := zip.NewWriter(w)
	for _, e := range entries {
		if err := writeEntry(zw, e); err != nil {
			return fmt.Errorf("package %s: %w", e.path, err)
		}
	}
	if err := zw.Close(); err != nil {
		return fmt.Errorf("finish the package: %w", err)
	}
	return nil
}

func writeEntry(zw *zip.Writer, e entry) error {
	header := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Modified: epoch}
	header.SetMode(plainMode(e))
	w, err := zw.CreateHeader(header)
	if err != nil {
		return err
	}
	if e.link != "" {
		_, err = io.WriteString(w, e.link)
		return err
	}
	f, err := os.Open(e.path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

func plainMode(e entry) fs.FileMode {
	switch {
	case e.link != "":
		return fs.ModeSymlink | 0o777
	case e.mode&0o111 != 0:
		return 0o755
	default:
		return 0o644
	}
}
