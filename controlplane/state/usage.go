package state

import (
	"bytes"
	"maps"
	"slices"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Usage is what a namespace has taken of its quotas. It is a sum over the records, kept only in memory.
type Usage struct {
	Functions int
	// AccessKeys of this namespace alone, not those of all namespaces.
	AccessKeys int
	Secrets    int
	// ReservedConcurrency is the sum over its functions.
	ReservedConcurrency int64
	// CodeBytes counts every package once, whoever refers to it.
	CodeBytes int64
}

type usageRow struct {
	namespace string
	Usage
}

func (u *usageRow) memKey() []byte { return []byte(u.namespace) }

// codeRow counts who refers to a package in one namespace.
type codeRow struct {
	digest, namespace string
	size              int64
	refs              int
}

func (c *codeRow) memKey() []byte { return codeKey(c.digest, c.namespace) }

func codeKey(digest, namespace string) []byte {
	return append(append([]byte(digest), 0), namespace...)
}

// share is what one record adds to its namespace's usage.
type share struct {
	namespace       string
	functions, keys int
	secrets         int
	reserved        int64
	digest          string
	size            int64
}

func shareOf(m proto.Message) share {
	switch v := m.(type) {
	case *mayflyv1.Function:
		return share{
			namespace: v.GetNamespace(), functions: 1, reserved: int64(v.GetReservedConcurrency()),
			digest: v.GetCode().GetDigest(), size: v.GetCode().GetSizeBytes(),
		}
	case *mayflyv1.Version:
		return share{namespace: v.GetNamespace(), digest: v.GetCode().GetDigest(), size: v.GetCode().GetSizeBytes()}
	case *statev1.AccessKeyRecord:
		if v.GetAccessKey().GetNamespace() != AllNamespaces {
			return share{namespace: v.GetAccessKey().GetNamespace(), keys: 1}
		}
	case *statev1.SecretRecord:
		return share{namespace: v.GetSecret().GetNamespace(), secrets: 1}
	}
	return share{}
}

// ledger collects changes of usage until they are written to the mirror together.
type ledger struct {
	usage map[string]*usageRow
	code  map[string]*codeRow
}

func newLedger() *ledger {
	return &ledger{usage: map[string]*usageRow{}, code: map[string]*codeRow{}}
}

// replace takes the share of old out and puts that of new in.
func (l *ledger) replace(txn *memdb.Txn, old, new share) {
	if old == new {
		return
	}
	l.add(txn, new, 1)
	l.add(txn, old, -1)
}

func (l *ledger) add(txn *memdb.Txn, s share, sign int) {
	if s == (share{}) {
		return
	}
	u := l.usageOf(txn, s.namespace)
	u.Functions += sign * s.functions
	u.AccessKeys += sign * s.keys
	u.Secrets += sign * s.secrets
	u.ReservedConcurrency += int64(sign) * s.reserved
	if s.digest == "" {
		return
	}
	c := l.codeOf(txn, s.digest, s.namespace)
	c.size = s.size
	if c.refs == 0 {
		u.CodeBytes += c.size
	}
	c.refs += sign
	if c.refs == 0 {
		u.CodeBytes -= c.size
	}
}

// usageOf is the namespace's row for changing.
func (l *ledger) usageOf(txn *memdb.Txn, namespace string) *usageRow {
	if u, ok := l.usage[namespace]; ok {
		return u
	}
	u := &usageRow{namespace: namespace}
	if raw, err := txn.First(memUsage, indexID, []byte(namespace)); err == nil && raw != nil {
		*u = *raw.(*usageRow)
	}
	l.usage[namespace] = u
	return u
}

// codeOf is the package's row in a namespace for changing.
func (l *ledger) codeOf(txn *memdb.Txn, digest, namespace string) *codeRow {
	k := string(codeKey(digest, namespace))
	if c, ok := l.code[k]; ok {
		return c
	}
	c := &codeRow{digest: digest, namespace: namespace}
	if raw, err := txn.First(memCode, indexID, []byte(k)); err == nil && raw != nil {
		*c = *raw.(*codeRow)
	}
	l.code[k] = c
	return c
}

// flush writes what changed to the mirror.
func (l *ledger) flush(txn *memdb.Txn) error {
	for _, k := range slices.Sorted(maps.Keys(l.usage)) {
		if err := put(txn, memUsage, l.usage[k], l.usage[k].Usage == Usage{}); err != nil {
			return err
		}
	}
	for _, k := range slices.Sorted(maps.Keys(l.code)) {
		if err := put(txn, memCode, l.code[k], l.code[k].refs == 0); err != nil {
			return err
		}
	}
	clear(l.usage)
	clear(l.code)
	return nil
}

func put(txn *memdb.Txn, table string, row keyed, gone bool) error {
	if !gone {
		return txn.Insert(table, row)
	}
	if raw, err := txn.First(table, indexID, row.memKey()); err != nil || raw == nil {
		return err
	}
	return txn.Delete(table, row)
}

// codeSize is the size that every record gives for a package, in any namespace.
func codeSize(txn *memdb.Txn, digest string) (int64, bool) {
	prefix := codeKey(digest, "")
	it, err := txn.LowerBound(memCode, indexID, prefix)
	if err != nil {
		return 0, false
	}
	raw := it.Next()
	if raw == nil || !bytes.HasPrefix(raw.(*codeRow).memKey(), prefix) {
		return 0, false
	}
	return raw.(*codeRow).size, true
}

func usageIn(txn *memdb.Txn, namespace string) Usage {
	raw, err := txn.First(memUsage, indexID, []byte(namespace))
	if err != nil || raw == nil {
		return Usage{}
	}
	return raw.(*usageRow).Usage
}
