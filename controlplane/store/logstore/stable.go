package logstore

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"
)

// Set implements raft.StableStore.
func (s *Store) Set(key, value []byte) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(stableBucket)).Put(key, value)
	})
	if err != nil {
		return fmt.Errorf("write raft variable %s: %w", key, err)
	}
	return nil
}

// Get implements raft.StableStore: an empty slice for a key that was never set.
func (s *Store) Get(key []byte) ([]byte, error) {
	value := []byte{}
	err := s.db.View(func(tx *bbolt.Tx) error {
		value = append(value, tx.Bucket([]byte(stableBucket)).Get(key)...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read raft variable %s: %w", key, err)
	}
	return value, nil
}

// SetUint64 implements raft.StableStore.
func (s *Store) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore: 0 for a key that was never set.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil || len(value) == 0 {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("raft variable %s has %d bytes, not 8", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}
