package logs

// bloom tells which request ids a block can't contain: 10 bits per id, 4 probes, about 1 in 80 wrong hits.
type bloom []byte

const (
	bloomBits   = 10
	bloomProbes = 4
)

func newBloom(n int) bloom { return make(bloom, (n*bloomBits+7)/8) }

func (b bloom) add(h uint64) {
	bits := uint64(len(b)) * 8
	for i := range uint64(bloomProbes) {
		at := probe(h, i) % bits
		b[at/8] |= 1 << (at % 8)
	}
}

func (b bloom) mayHave(h uint64) bool {
	bits := uint64(len(b)) * 8
	if bits == 0 {
		return false
	}
	for i := range uint64(bloomProbes) {
		at := probe(h, i) % bits
		if b[at/8]&(1<<(at%8)) == 0 {
			return false
		}
	}
	return true
}

func probe(h, i uint64) uint64 { return h + i*((h>>32)|1) }

// hashID is FNV-1a of a request id: the same in every process.
func hashID(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h
}
