package table

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
)

const (
	runSuffix = ".restore"
	// runBytes keeps one file of a replacement to a size that later compactions move cheaply.
	runBytes = 64 << 20
)

// runWriter writes sorted rows into files that pebble can take in whole.
type runWriter struct {
	t     *Table
	w     *sstable.Writer
	paths []string
	last  []byte
}

func (w *runWriter) add(r Row) error {
	if len(r.Key) == 0 || r.Key[0] == 0xff || r.Value == nil {
		return errors.New("replace the table's content: a row has no key, a key out of range or no value")
	}
	if w.last != nil && bytes.Compare(r.Key, w.last) <= 0 {
		return errors.New("replace the table's content: rows are not in order of their keys")
	}
	w.last = append(w.last[:0], r.Key...)
	if err := w.roll(); err != nil {
		return err
	}
	if err := w.w.Set(r.Key, r.Value); err != nil {
		return fmt.Errorf("write replacement row: %w", err)
	}
	return nil
}

// roll makes sure that there is a file with room in it.
func (w *runWriter) roll() error {
	if w.w != nil && w.w.Raw().EstimatedSize() < runBytes {
		return nil
	}
	if err := w.finish(); err != nil {
		return err
	}
	path := filepath.Join(w.t.cfg.Dir, fmt.Sprintf("%06d%s", len(w.paths), runSuffix))
	f, err := w.t.cfg.FS.Create(path, "mayfly-restore")
	if err != nil {
		return fmt.Errorf("create replacement file: %w", err)
	}
	w.paths = append(w.paths, path)
	w.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), w.t.opts.MakeWriterOptions(0, w.t.db.TableFormat()))
	return nil
}

func (w *runWriter) finish() error {
	if w.w == nil {
		return nil
	}
	err := w.w.Close()
	w.w = nil
	if err != nil {
		return fmt.Errorf("finish replacement file: %w", err)
	}
	return nil
}

// cleanUp removes the files; pebble has links of its own to those that it took in.
func (w *runWriter) cleanUp() error {
	err := w.finish()
	for _, p := range w.paths {
		if e := w.t.cfg.FS.Remove(p); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove replacement file: %w", e))
		}
	}
	return err
}

// logger hands pebble's messages to slog. What pebble can't survive panics: the process must stop, and the Raft log makes up for what it lost.
type logger struct{ log *slog.Logger }

func (l logger) Infof(format string, args ...any) {
	l.log.Debug("pebble", "message", fmt.Sprintf(format, args...))
}

func (l logger) Errorf(format string, args ...any) {
	l.log.Error("pebble", "message", fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	l.log.Error("pebble can't go on", "message", fmt.Sprintf(format, args...))
	panic("state table: " + fmt.Sprintf(format, args...))
}
