package logs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A function's log is a row of segment files, NAME.log with the time of the first record as hexadecimal Unix nanoseconds.
// A segment is a row of blocks, one per flush, ordered by time:
//
//	uint32 magic, uint32 CRC-32C of the rest, uint32 sizes of the filter and the body,
//	uint64 times of the first and last record, the Bloom filter of the request ids, then the body:
//	per sandbox its log stream's name, version and records, each after its length as uvarint.
//
// Readers hop over blocks by time and by request id. What a crash cut short fails its check sum and ends the segment;
// a process never appends to a segment of an earlier one.
const (
	blockMagic      = 0x4d66_6c31
	blockHeaderSize = 32
	segmentSuffix   = ".log"
	segmentAge      = 24 * time.Hour
	recentBlocks    = 256
)

type segment struct {
	path  string
	first int64 // time of its first record
	size  int64 // what is committed
}

// blockAt is where a block of the newest segment is, so that a follower needn't search it.
type blockAt struct{ offset, last int64 }

// function is the log of one function.
type function struct {
	store *Store
	dir   string

	mu       sync.Mutex // never held while files are read or written
	streams  map[*Stream]struct{}
	batch    []section // being written
	segments []segment // oldest first
	own      bool      // the newest segment is of this process
	recent   []blockAt // blocks at its end
}

// load finds the segments of earlier processes.
func (f *function) load() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read log directory: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		first, err := strconv.ParseInt(name, 16, 64)
		info, statErr := e.Info()
		if !ok || err != nil || statErr != nil {
			continue
		}
		f.segments = append(f.segments, segment{path: filepath.Join(f.dir, e.Name()), first: first, size: info.Size()})
	}
	slices.SortFunc(f.segments, func(a, b segment) int { return int(min(1, max(-1, a.first-b.first))) })
	if n := len(f.segments); n > 0 {
		f.store.notBefore(lastTime(f.segments[n-1]))
	}
	return nil
}

func lastTime(s segment) int64 {
	last := s.first
	_ = s.blocks(0, func(h blockHeader, _ int64) bool { return false }, func(h blockHeader, _ []byte) error { return nil },
		func(h blockHeader) { last = max(last, h.last) })
	return last
}

// flush writes what the streams hold; it is called by one at a time. A batch that can't be written is kept.
func (f *function) flush() error {
	batch := f.collect()
	if len(batch) == 0 {
		return nil
	}
	block, first, last := appendBlock(nil, batch)
	seg, isNew, err := f.write(block, first)
	if err != nil {
		return fmt.Errorf("write log of %s: %w", filepath.Base(f.dir), err)
	}
	f.mu.Lock()
	f.commit(seg, isNew, int64(len(block)), last)
	f.mu.Unlock()
	var size int
	for _, sec := range batch {
		size += len(sec.records)
	}
	f.store.pending.Add(-int64(size))
	if isNew {
		f.retain()
	}
	return nil
}

func (f *function) collect() []section {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.batch) > 0 {
		return f.batch
	}
	if len(f.streams) == 0 {
		return nil
	}
	cutoff := f.store.now()
	for st := range f.streams {
		sec, empty := st.flushable(cutoff)
		if len(sec.records) > 0 {
			f.batch = append(f.batch, sec)
		}
		if empty {
			delete(f.streams, st)
		}
	}
	return f.batch
}

// write appends block to the newest segment, or to a new one.
func (f *function) write(block []byte, first int64) (seg segment, isNew bool, err error) {
	f.mu.Lock()
	n := len(f.segments)
	isNew = n == 0 || !f.own || f.segments[n-1].size >= f.store.cfg.SegmentBytes || first-f.segments[n-1].first > int64(segmentAge)
	if isNew {
		seg = segment{path: filepath.Join(f.dir, fmt.Sprintf("%016x%s", first, segmentSuffix)), first: first}
	} else {
		seg = f.segments[n-1]
	}
	f.mu.Unlock()
	if isNew {
		if err := os.MkdirAll(f.dir, 0o700); err != nil {
			return seg, true, err
		}
	}
	return seg, isNew, appendFile(seg, block)
}

func appendFile(seg segment, block []byte) error {
	file, err := os.OpenFile(seg.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := file.WriteAt(block, seg.size); err != nil {
		return errors.Join(err, file.Truncate(seg.size), file.Close())
	}
	return file.Close()
}

func (f *function) commit(seg segment, isNew bool, n, last int64) {
	if isNew {
		f.segments = append(f.segments, seg)
		f.own, f.recent = true, nil
	}
	newest := &f.segments[len(f.segments)-1]
	if len(f.recent) == recentBlocks {
		f.recent = append(f.recent[:0], f.recent[recentBlocks/2:]...)
	}
	f.recent = append(f.recent, blockAt{offset: newest.size, last: last})
	newest.size += n
	f.batch = nil
}

// retain deletes the oldest segments while there are too many bytes, and those that are too old. Only the flusher calls it.
func (f *function) retain() {
	oldest := f.store.cfg.Now().Add(-f.store.cfg.MaxAge).UnixNano()
	f.mu.Lock()
	defer f.mu.Unlock()
	var total int64
	for _, s := range f.segments {
		total += s.size
	}
	for len(f.segments) > 0 && (f.expired(oldest) || (total > f.store.cfg.FunctionBytes && len(f.segments) > 1)) {
		total -= f.segments[0].size
		if err := os.Remove(f.segments[0].path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.store.cfg.Logger.Error("can't delete old logs", "error", err)
			return
		}
		f.segments = slices.Delete(f.segments, 0, 1)
	}
	if len(f.segments) == 0 {
		f.own, f.recent = false, nil
		_ = os.Remove(f.dir) // if it is empty
	}
}

// expired tells whether the oldest segment ended before t.
func (f *function) expired(t int64) bool {
	if len(f.segments) > 1 {
		return f.segments[1].first < t
	}
	info, err := os.Stat(f.segments[0].path)
	return err == nil && info.ModTime().UnixNano() < t
}

func appendBlock(b []byte, batch []section) (block []byte, first, last int64) {
	first, last = batch[0].first, batch[0].last
	ids := 0
	for _, sec := range batch {
		first, last, ids = min(first, sec.first), max(last, sec.last), ids+len(sec.ids)
	}
	filter := newBloom(ids)
	for _, sec := range batch {
		for _, id := range sec.ids {
			filter.add(id)
		}
	}
	var body []byte
	for _, sec := range batch {
		for _, part := range [][]byte{[]byte(sec.name), []byte(sec.version), sec.records} {
			body = binary.AppendUvarint(body, uint64(len(part)))
			body = append(body, part...)
		}
	}
	b = binary.BigEndian.AppendUint32(b, blockMagic)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(filter))) // below Config.PendingBytes, as is the body
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))   // see above
	b = binary.BigEndian.AppendUint64(b, uint64(first))       // a time after 1970
	b = binary.BigEndian.AppendUint64(b, uint64(last))        // a time after 1970
	b = append(append(b, filter...), body...)
	binary.BigEndian.PutUint32(b[4:], crc32.Checksum(b[8:], crc32.MakeTable(crc32.Castagnoli)))
	return b, first, last
}

type blockHeader struct {
	raw              [blockHeaderSize]byte
	filterSize, size int64
	first, last      int64
	filter           bloom
}

func parseHeader(raw [blockHeaderSize]byte) (blockHeader, bool) {
	u32 := func(i int) int64 { return int64(binary.BigEndian.Uint32(raw[i:])) }
	u64 := func(i int) int64 { return int64(binary.BigEndian.Uint64(raw[i:])) } // written from an int64
	return blockHeader{raw: raw, filterSize: u32(8), size: u32(12), first: u64(16), last: u64(24)}, u32(0) == blockMagic
}

// blocks calls read with the body of each block that want accepts, in order, from the offset on. Damage counts as
// the segment's end. seen, if not nil, is called for every block.
func (s segment) blocks(from int64, want func(blockHeader, int64) bool, read func(blockHeader, []byte) error, seen func(blockHeader)) error {
	file, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // retention was faster
	}
	if err != nil {
		return err
	}
	defer file.Close()
	in := newHopper(file, from, s.size)
	for {
		h, ok := in.header()
		if !ok {
			return nil
		}
		if seen != nil {
			seen(h)
		}
		if !want(h, in.offset) {
			in.skip(h.size)
			continue
		}
		body, ok := in.body(h)
		if !ok {
			return nil
		}
		if err := read(h, body); err != nil {
			return err
		}
	}
}

// hopper reads blocks and hops over bodies, with few system calls when they are small.
type hopper struct {
	file   io.ReaderAt
	offset int64
	end    int64
	buffer []byte
	at     int64 // offset of buffer in the file
}

func newHopper(file io.ReaderAt, from, end int64) *hopper {
	return &hopper{file: file, offset: from, end: end}
}

const hopperBuffer = 64 << 10

// next returns n bytes, valid until the next call.
func (h *hopper) next(n int64) ([]byte, bool) {
	if n < 0 || h.offset+n > h.end {
		return nil, false
	}
	start := h.offset - h.at
	if start < 0 || start+n > int64(len(h.buffer)) {
		size := min(max(n, hopperBuffer), h.end-h.offset)
		if int64(cap(h.buffer)) < size {
			h.buffer = make([]byte, size)
		}
		h.buffer = h.buffer[:size]
		if _, err := h.file.ReadAt(h.buffer, h.offset); err != nil {
			h.buffer = h.buffer[:0]
			return nil, false
		}
		h.at, start = h.offset, 0
	}
	h.offset += n
	return h.buffer[start : start+n], true
}

func (h *hopper) skip(n int64) { h.offset += n }

func (h *hopper) header() (blockHeader, bool) {
	raw, ok := h.next(blockHeaderSize)
	if !ok {
		return blockHeader{}, false
	}
	head, ok := parseHeader([blockHeaderSize]byte(raw))
	if !ok {
		return blockHeader{}, false
	}
	filter, ok := h.next(head.filterSize)
	head.filter = slices.Clone(bloom(filter))
	return head, ok
}

func (h *hopper) body(head blockHeader) ([]byte, bool) {
	body, ok := h.next(head.size)
	if !ok {
		return nil, false
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Checksum(head.raw[8:], table)
	sum = crc32.Update(sum, table, head.filter)
	sum = crc32.Update(sum, table, body)
	return body, sum == binary.BigEndian.Uint32(head.raw[4:])
}
