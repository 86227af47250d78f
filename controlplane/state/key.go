package state

import (
	"encoding/binary"
	"slices"
)

// The first byte of a row's key is its kind, for ever. Ids follow, each but the last ended by a NUL, so that rows of one
// parent lie together and in order of their ids.
const (
	prefixApplied   = 0x00 // SnapshotHeader: index and term of the last entry applied; not in snapshots
	prefixAlias     = 'a'  // namespace NUL function NUL name
	prefixCluster   = 'c'
	prefixFunction  = 'f' // namespace NUL name
	prefixNode      = 'h' // id
	prefixAccessKey = 'k' // id
	prefixNamespace = 'n' // name
	prefixProposal  = 'p' // index (8 bytes big-endian), proposal id
	prefixSettings  = 's'
	prefixSecret    = 't' // namespace NUL name
	prefixVersion   = 'v' // namespace NUL function NUL number (8 bytes big-endian)
)

// key joins ids under a prefix.
func key(prefix byte, ids ...string) []byte {
	n := 1 + len(ids)
	for _, id := range ids {
		n += len(id)
	}
	k := append(make([]byte, 0, n), prefix)
	for i, id := range ids {
		if i > 0 {
			k = append(k, 0)
		}
		k = append(k, id...)
	}
	return k
}

// within is the prefix of all keys that have exactly these ids before others.
func within(prefix byte, ids ...string) []byte {
	k := key(prefix, ids...)
	if len(ids) > 0 {
		k = append(k, 0)
	}
	return k
}

func versionKey(namespace, function string, number int64) []byte {
	return binary.BigEndian.AppendUint64(within(prefixVersion, namespace, function), uint64(number))
}

func proposalKey(index uint64, id string) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{prefixProposal}, index), id...)
}

func splitProposalKey(k []byte) (index uint64, id string, ok bool) {
	if len(k) < 9 || k[0] != prefixProposal {
		return 0, "", false
	}
	return binary.BigEndian.Uint64(k[1:9]), string(k[9:]), true
}

// after is the smallest key greater than k.
func after(k []byte) []byte { return append(slices.Clip(k), 0) }
