// Package logstore keeps Raft's log and Raft's own variables in a bbolt file.
//
// What belongs here: raft.LogStore, raft.StableStore and raft.CommitTrackingLogStore on one file, each write synced before it
// returns, each entry with a checksum. What does not: what entries mean, and snapshots.
package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// ErrCorrupt says that an entry is not what was written.
var ErrCorrupt = errors.New("log entry is corrupt: restore this node's raft directory from a backup, or remove it and let the node join again")

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = 2 * time.Second

const (
	logsBucket   = "logs"
	stableBucket = "stable"
	metaBucket   = "meta"
	commitKey    = "commit"
)

// Store implements raft.LogStore, raft.StableStore and raft.CommitTrackingLogStore. Gaps between entries are allowed.
type Store struct {
	db  *bbolt.DB
	crc *crc32.Table

	mu sync.Mutex
	// first and last are the bounds of the log, 0 if it is empty.
	first, last uint64
	// staged is the commit index to be written with the next entries.
	staged uint64
}

// Open opens or makes the file. It fails if another process has it open.
func Open(path string) (*Store, error) {
	_, statErr := os.Stat(path)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:        lockTimeout,
		FreelistType:   bbolt.FreelistMapType,
		NoFreelistSync: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open raft log %s (is another mayfly running on it?): %w", path, err)
	}
	s := &Store{db: db, crc: crc32.MakeTable(crc32.Castagnoli)}
	if err := s.prepare(path, errors.Is(statErr, os.ErrNotExist)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *Store) prepare(path string, isNew bool) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{logsBucket, stableBucket, metaBucket} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		s.first, s.last = bounds(tx)
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare raft log: %w", err)
	}
	if isNew {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// syncDir makes a new file's name durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open raft directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync raft directory: %w", err)
	}
	return nil
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// FirstIndex implements raft.LogStore.
func (s *Store) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, nil
}

// LastIndex implements raft.LogStore.
func (s *Store) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

// GetLog implements raft.LogStore. It answers raft.ErrLogNotFound, or ErrCorrupt for an entry that was damaged.
func (s *Store) GetLog(index uint64, log *raft.Log) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket([]byte(logsBucket)).Get(indexKey(index))
		if raw == nil {
			return raft.ErrLogNotFound
		}
		return s.decode(index, raw, log)
	})
}

// StoreLog implements raft.LogStore.
func (s *Store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore: all entries and the staged commit index are on disk when it returns, or none.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	s.mu.Lock()
	staged := s.staged
	s.mu.Unlock()
	return s.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(logsBucket))
		// Entries come in order: full pages need no room for later ones.
		b.FillPercent = 1
		for _, l := range logs {
			if err := b.Put(indexKey(l.Index), s.encode(l)); err != nil {
				return err
			}
		}
		if staged == 0 {
			return nil
		}
		return tx.Bucket([]byte(metaBucket)).Put([]byte(commitKey), binary.BigEndian.AppendUint64(nil, staged))
	})
}

// DeleteRange implements raft.LogStore.
func (s *Store) DeleteRange(low, high uint64) error {
	return s.update(func(tx *bbolt.Tx) error {
		c := tx.Bucket([]byte(logsBucket)).Cursor()
		// A delete moves the cursor, so each round seeks anew.
		for k, _ := c.Seek(indexKey(low)); k != nil && binary.BigEndian.Uint64(k) <= high; k, _ = c.Seek(indexKey(low)) {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// update changes the file, synced, and learns the log's new bounds.
func (s *Store) update(change func(tx *bbolt.Tx) error) error {
	var first, last uint64
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if err := change(tx); err != nil {
			return err
		}
		first, last = bounds(tx)
		return nil
	})
	if err != nil {
		return fmt.Errorf("write raft log: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first, s.last = first, last
	return nil
}

func bounds(tx *bbolt.Tx) (first, last uint64) {
	c := tx.Bucket([]byte(logsBucket)).Cursor()
	if k, _ := c.First(); k != nil {
		first = binary.BigEndian.Uint64(k)
	}
	if k, _ := c.Last(); k != nil {
		last = binary.BigEndian.Uint64(k)
	}
	return first, last
}

// StageCommitIndex implements raft.CommitTrackingLogStore.
func (s *Store) StageCommitIndex(index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staged = max(s.staged, index)
	return nil
}

// GetCommitIndex implements raft.CommitTrackingLogStore.
func (s *Store) GetCommitIndex() (uint64, error) {
	var index uint64
	err := s.db.View(func(tx *bbolt.Tx) error {
		if raw := tx.Bucket([]byte(metaBucket)).Get([]byte(commitKey)); len(raw) == 8 {
			index = binary.BigEndian.Uint64(raw)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read commit index: %w", err)
	}
	last, err := s.LastIndex()
	return min(index, last), err
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }
