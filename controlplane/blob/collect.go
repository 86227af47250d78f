package blob

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Info is what Walk says of a blob.
type Info struct {
	Digest string
	// In bytes.
	Size int64
	// When it was last stored or touched.
	Time time.Time
}

// Walk calls visit for each blob in order of digests until visit returns an error, which it returns. Blobs stored or deleted meanwhile may be missed.
func (s *Store) Walk(visit func(Info) error) error {
	shards, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("list the blobs: %w", err)
	}
	for _, shard := range shards {
		if !shard.IsDir() || len(shard.Name()) != 2 {
			continue
		}
		if err := s.walkShard(shard.Name(), visit); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) walkShard(shard string, visit func(Info) error) error {
	files, err := os.ReadDir(filepath.Join(s.cfg.Dir, shard))
	if err != nil {
		return fmt.Errorf("list the blobs: %w", err)
	}
	for _, file := range files {
		digest := digestPrefix + shard + file.Name()
		if CheckDigest(digest) != nil {
			continue
		}
		info, err := file.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at blob %s: %w", digest, err)
		}
		if err := visit(Info{Digest: digest, Size: info.Size(), Time: info.ModTime()}); err != nil {
			return err
		}
	}
	return nil
}

// Collect deletes the blobs that nobody refers to and that were stored or touched longer ago than grace; it returns how many.
// Who is about to refer to a blob calls Touch first, and has grace to do so.
func (s *Store) Collect(referenced func(digest string) bool, grace time.Duration) (deleted int, err error) {
	err = s.Walk(func(b Info) error {
		if s.cfg.Now().Sub(b.Time) <= grace || referenced(b.Digest) {
			return nil
		}
		gone, err := s.deleteOlder(b.Digest, grace)
		if gone {
			deleted++
		}
		return err
	})
	return deleted, err
}

// deleteOlder looks at the time again, under the lock: the blob may have been touched since the caller asked who refers to it.
func (s *Store) deleteOlder(digest string, grace time.Duration) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.path(digest))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at blob %s: %w", digest, err)
	}
	if s.cfg.Now().Sub(info.ModTime()) <= grace {
		return false, nil
	}
	if err := os.Remove(s.path(digest)); err != nil {
		return false, fmt.Errorf("delete blob %s: %w", digest, err)
	}
	return true, nil
}
