// Package table keeps rows (bytes to bytes, ordered by key) on disk in a pebble database without a write-ahead log.
//
// What belongs here: the database, its settings, atomic writes, consistent read views and the atomic replacement of everything.
// What does not: what rows mean (package state), and durability of the last writes: after a crash the table is what it was
// after some earlier Write, never between two, and the Raft log holds the rest.
package table

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Row is a key with its value. In a Write a nil Value deletes the key; an empty one does not.
// Keys are not empty and begin with a byte below 0xff.
type Row struct {
	Key, Value []byte
}

// View is the table as it was at one moment. It is for one goroutine, and holds disk space until closed.
type View interface {
	// Rows yields the rows whose key begins with prefix in order of their keys; it ends after the first error.
	// Key and Value are valid until the next row only.
	Rows(prefix []byte) iter.Seq2[Row, error]
	Close() error
}

type view struct{ it *pebble.Iterator }

// Config says where a table is.
type Config struct {
	// Dir is made if it is missing.
	Dir string
	// FS is the file system; nil is the host's.
	FS vfs.FS
	// Logger takes pebble's messages; nil discards them.
	Logger *slog.Logger
	// MemTableBytes is how much a write buffer holds before it goes to disk; 0 is 8 MiB. At most four exist at once.
	MemTableBytes uint64
	// CacheBytes bounds the cache of blocks; 0 is 8 MiB.
	CacheBytes int64
}

func (c *Config) setDefaults() error {
	if c.Dir == "" {
		return errors.New("table: Dir is empty: name the directory that holds the table")
	}
	if c.FS == nil {
		c.FS = vfs.Default
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MemTableBytes == 0 {
		c.MemTableBytes = 8 << 20
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 8 << 20
	}
	return nil
}

// Table is an open table. Its methods may be called concurrently, but Close and Replace only alone.
type Table struct {
	db   *pebble.DB
	opts *pebble.Options
	cfg  Config
}

// Open opens the table in cfg.Dir or makes an empty one. Only one process can have it open.
func Open(cfg Config) (*Table, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make table directory %s: %w", cfg.Dir, err)
	}
	if err := removeLeftovers(cfg.FS, cfg.Dir); err != nil {
		return nil, err
	}
	opts := &pebble.Options{
		FS:                          cfg.FS,
		DisableWAL:                  true,
		CacheSize:                   cfg.CacheBytes,
		MemTableSize:                cfg.MemTableBytes,
		MemTableStopWritesThreshold: 4,
		FormatMajorVersion:          pebble.FormatTableFormatV6,
		Logger:                      logger{cfg.Logger},
	}
	opts.EnsureDefaults()
	db, err := pebble.Open(cfg.Dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open table %s (is another mayfly running on it?): %w", cfg.Dir, err)
	}
	return &Table{db: db, opts: opts, cfg: cfg}, nil
}

// Get returns a copy of the value of key, nil if there is none.
func (t *Table) Get(key []byte) ([]byte, error) {
	v, closer, err := t.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read table row: %w", err)
	}
	out := append([]byte{}, v...)
	return out, closer.Close()
}

// Write writes all rows or, after a crash, none of them.
func (t *Table) Write(rows []Row) error {
	b := t.db.NewBatch()
	defer b.Close()
	for _, r := range rows {
		var err error
		if r.Value == nil {
			err = b.Delete(r.Key, nil)
		} else {
			err = b.Set(r.Key, r.Value, nil)
		}
		if err != nil {
			return fmt.Errorf("collect table rows: %w", err)
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("write table rows: %w", err)
	}
	return nil
}

// Flush returns when all that was written before is on disk.
func (t *Table) Flush() error {
	if err := t.db.Flush(); err != nil {
		return fmt.Errorf("flush table: %w", err)
	}
	return nil
}

// Close flushes and closes the table. Views must be closed before.
func (t *Table) Close() error {
	return errors.Join(t.Flush(), t.db.Close())
}

// View opens a read view, which later writes and replacements don't change.
func (t *Table) View() (View, error) {
	it, err := t.db.NewIter(nil)
	if err != nil {
		return nil, fmt.Errorf("open table view: %w", err)
	}
	return view{it: it}, nil
}

// Rows implements View.
func (v view) Rows(prefix []byte) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for ok := v.it.SeekGE(prefix); ok && hasPrefix(v.it.Key(), prefix); ok = v.it.Next() {
			value, err := v.it.ValueAndErr()
			if err != nil {
				yield(Row{}, fmt.Errorf("read table view: %w", err))
				return
			}
			if !yield(Row{Key: v.it.Key(), Value: value}, nil) {
				return
			}
		}
		if err := v.it.Error(); err != nil {
			yield(Row{}, fmt.Errorf("read table view: %w", err))
		}
	}
}

// Close implements View.
func (v view) Close() error { return v.it.Close() }

func hasPrefix(key, prefix []byte) bool {
	return len(key) >= len(prefix) && string(key[:len(prefix)]) == string(prefix)
}

// Replace puts rows, which come in order of their keys, in the place of everything: at once, and durably when it returns.
// After an error or a crash before that, the table is as it was.
func (t *Table) Replace(rows iter.Seq2[Row, error]) (err error) {
	w := runWriter{t: t}
	defer func() { err = errors.Join(err, w.cleanUp()) }()
	for r, err := range rows {
		if err != nil {
			return err
		}
		if err := w.add(r); err != nil {
			return err
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	all := pebble.KeyRange{Start: []byte{0}, End: []byte{0xff}}
	if _, err := t.db.IngestAndExcise(context.Background(), w.paths, nil, nil, all); err != nil {
		return fmt.Errorf("replace the table's content: %w", err)
	}
	return nil
}

func removeLeftovers(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("list table directory: %w", err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, runSuffix) {
			if err := fs.Remove(filepath.Join(dir, n)); err != nil {
				return fmt.Errorf("remove what a broken restore left: %w", err)
			}
		}
	}
	return nil
}
