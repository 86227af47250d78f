package logstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// An entry is stored as: CRC-32C of index and all that follows (4 bytes), format (1), type (1), term (8), time of
// appending (8, nanoseconds since 1970, 0 if unset), length of the data (4), data, extensions; numbers big-endian.
const (
	entryFormat = 1
	headerSize  = 4 + 1 + 1 + 8 + 8 + 4
)

func (s *Store) encode(l *raft.Log) []byte {
	b := make([]byte, 4, headerSize+len(l.Data)+len(l.Extensions))
	b = append(b, entryFormat, byte(l.Type))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(nanoseconds(l.AppendedAt)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Data)))
	b = append(b, l.Data...)
	b = append(b, l.Extensions...)
	binary.BigEndian.PutUint32(b, s.checksum(l.Index, b))
	return b
}

func (s *Store) decode(index uint64, b []byte, l *raft.Log) error {
	if len(b) < headerSize || binary.BigEndian.Uint32(b) != s.checksum(index, b) {
		return fmt.Errorf("entry %d: %w", index, ErrCorrupt)
	}
	if b[4] != entryFormat {
		return fmt.Errorf("entry %d has format %d, this mayfly reads %d: run a newer one", index, b[4], entryFormat)
	}
	size := int(binary.BigEndian.Uint32(b[22:]))
	if size > len(b)-headerSize {
		return fmt.Errorf("entry %d: %w", index, ErrCorrupt)
	}
	*l = raft.Log{Index: index, Type: raft.LogType(b[5]), Term: binary.BigEndian.Uint64(b[6:])}
	if ns := int64(binary.BigEndian.Uint64(b[14:])); ns != 0 {
		l.AppendedAt = time.Unix(0, ns)
	}
	// The file's memory is only good within the transaction.
	l.Data = append([]byte(nil), b[headerSize:headerSize+size]...)
	l.Extensions = append([]byte(nil), b[headerSize+size:]...)
	return nil
}

func (s *Store) checksum(index uint64, b []byte) uint32 {
	return crc32.Update(crc32.Checksum(indexKey(index), s.crc), s.crc, b[4:])
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
