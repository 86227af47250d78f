package state

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// SnapshotVersion is the format that snapshots are written in; older ones can be read.
const SnapshotVersion = 1

// maxMessage bounds one message of a snapshot: a row comes from an entry of at most 1 MiB.
const maxMessage = 16 << 20

// Snapshot is a read view of the whole state. It stops nothing, and holds disk space until closed.
type Snapshot struct {
	view   table.View
	header *statev1.SnapshotHeader
}

// Snapshot opens a view of the state as it is now.
func (s *State) Snapshot() (*Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	view, err := s.table.View()
	if err != nil {
		return nil, fmt.Errorf("snapshot the state: %w", err)
	}
	p := s.current.Load()
	return &Snapshot{view: view, header: &statev1.SnapshotHeader{Version: SnapshotVersion, Index: p.index, Term: p.term}}, nil
}

// Index is that of the last entry in the snapshot.
func (s *Snapshot) Index() uint64 { return s.header.GetIndex() }

// Close frees what the snapshot holds.
func (s *Snapshot) Close() error { return s.view.Close() }

// Write streams the snapshot. The same entries give the same bytes on every node.
func (s *Snapshot) Write(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	if _, err := protodelim.MarshalTo(out, s.header); err != nil {
		return fmt.Errorf("write snapshot header: %w", err)
	}
	sum := newChecksum(s.header)
	row := &statev1.SnapshotRow{}
	for r, err := range s.view.Rows(nil) {
		if err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		if r.Key[0] == prefixApplied {
			continue
		}
		sum.add(r)
		row.Key, row.Value = r.Key, r.Value
		if _, err := protodelim.MarshalTo(out, row); err != nil {
			return fmt.Errorf("write snapshot row: %w", err)
		}
	}
	trailer, err := proto.Marshal(sum.trailer())
	if err != nil {
		return fmt.Errorf("encode snapshot trailer: %w", err)
	}
	if _, err := protodelim.MarshalTo(out, &statev1.SnapshotRow{Value: trailer}); err != nil {
		return fmt.Errorf("write snapshot trailer: %w", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// Restore puts a snapshot in the place of everything. The snapshot is verified as it is read; after an error, or a crash
// at any moment before it returns, the state is what it was before.
func (s *State) Restore(r io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := bufio.NewReaderSize(r, 1<<20)
	header, err := readHeader(in)
	if err != nil {
		return err
	}
	l, err := newLoader(header)
	if err != nil {
		return err
	}
	if err := s.table.Replace(snapshotRows(in, header, l)); err != nil {
		return fmt.Errorf("restore the snapshot of entry %d: %w", header.GetIndex(), err)
	}
	s.failed = nil
	s.adopt(l)
	s.log.Info("state restored from a snapshot", "applied_index", header.GetIndex())
	return nil
}

// ReadSnapshotIndex reads only which entry a snapshot goes up to.
func ReadSnapshotIndex(r io.Reader) (uint64, error) {
	h, err := readHeader(bufio.NewReader(r))
	return h.GetIndex(), err
}

func readHeader(in *bufio.Reader) (*statev1.SnapshotHeader, error) {
	h := &statev1.SnapshotHeader{}
	if err := readMessage(in, h); err != nil {
		return nil, fmt.Errorf("read snapshot header: %w", err)
	}
	if v := h.GetVersion(); v == 0 || v > SnapshotVersion {
		return nil, fmt.Errorf("the snapshot has format %d, this mayfly reads 1 to %d: run a newer one", v, SnapshotVersion)
	}
	return h, nil
}

func readMessage(in *bufio.Reader, m proto.Message) error {
	err := protodelim.UnmarshalOptions{MaxSize: maxMessage}.UnmarshalFrom(in, m)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the snapshot is cut off: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// snapshotRows yields the table's rows of a snapshot while l loads them; it ends with an error unless the snapshot is whole.
func snapshotRows(in *bufio.Reader, header *statev1.SnapshotHeader, l *loader) iter.Seq2[table.Row, error] {
	return func(yield func(table.Row, error) bool) {
		applied, err := proto.Marshal(header)
		if !yield(table.Row{Key: []byte{prefixApplied}, Value: applied}, err) || err != nil {
			return
		}
		sum := newChecksum(header)
		for {
			row, err := nextRow(in, sum, l)
			if err == nil && row.Key == nil {
				return
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}

// nextRow answers a row without key at the end of a whole snapshot.
func nextRow(in *bufio.Reader, sum *checksum, l *loader) (table.Row, error) {
	m := &statev1.SnapshotRow{}
	if err := readMessage(in, m); err != nil {
		return table.Row{}, fmt.Errorf("read snapshot row: %w", err)
	}
	if len(m.GetKey()) == 0 {
		if err := sum.check(m.GetValue()); err != nil {
			return table.Row{}, err
		}
		return table.Row{}, l.finish()
	}
	row := table.Row{Key: m.GetKey(), Value: m.GetValue()}
	if row.Value == nil {
		row.Value = []byte{}
	}
	if row.Key[0] == prefixApplied {
		return table.Row{}, fmt.Errorf("row %q may not be in a snapshot", row.Key)
	}
	sum.add(row)
	return row, l.add(row)
}

// checksum is that of SnapshotTrailer.
type checksum struct {
	rows  uint64
	crc   uint32
	table *crc32.Table
}

func newChecksum(h *statev1.SnapshotHeader) *checksum {
	c := &checksum{table: crc32.MakeTable(crc32.Castagnoli)}
	c.number(uint64(h.GetVersion()))
	c.number(h.GetIndex())
	c.number(h.GetTerm())
	return c
}

func (c *checksum) add(r table.Row) {
	c.rows++
	c.bytes(r.Key)
	c.bytes(r.Value)
}

func (c *checksum) bytes(b []byte) {
	c.number(uint64(len(b)))
	c.crc = crc32.Update(c.crc, c.table, b)
}

func (c *checksum) number(n uint64) {
	c.crc = crc32.Update(c.crc, c.table, binary.BigEndian.AppendUint64(nil, n))
}

func (c *checksum) trailer() *statev1.SnapshotTrailer {
	return &statev1.SnapshotTrailer{Rows: c.rows, Crc32C: c.crc}
}

func (c *checksum) check(trailer []byte) error {
	t := &statev1.SnapshotTrailer{}
	if err := proto.Unmarshal(trailer, t); err != nil {
		return fmt.Errorf("decode snapshot trailer: %w", err)
	}
	if t.GetRows() != c.rows || t.GetCrc32C() != c.crc {
		return fmt.Errorf("the snapshot is damaged: it has %d rows with checksum %08x, its end says %d with %08x", c.rows, c.crc, t.GetRows(), t.GetCrc32C())
	}
	return nil
}
