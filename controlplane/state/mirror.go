package state

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Tables and indexes of the mirror.
const (
	memRows  = "rows"
	memUsage = "usage"
	memCode  = "code"
	indexID  = "id"
	indexAlt = "alt"
)

// entry is a row of a small kind in memory. Nothing in it is ever changed.
type entry struct {
	key []byte
	// alt is a second unique key, nil if its kind has none.
	alt   []byte
	value proto.Message
}

func (e *entry) memKey() []byte { return e.key }

type keyed interface{ memKey() []byte }

// byKey indexes objects by the key that they carry; queries pass key bytes.
type byKey struct{}

// FromArgs implements memdb.Indexer.
func (byKey) FromArgs(args ...any) ([]byte, error) { return keyArg(args) }

// FromObject implements memdb.SingleIndexer.
func (byKey) FromObject(raw any) (bool, []byte, error) {
	return true, raw.(keyed).memKey(), nil
}

// byAlt indexes entries by their second key.
type byAlt struct{}

// FromArgs implements memdb.Indexer.
func (byAlt) FromArgs(args ...any) ([]byte, error) { return keyArg(args) }

// FromObject implements memdb.SingleIndexer.
func (byAlt) FromObject(raw any) (bool, []byte, error) {
	alt := raw.(*entry).alt
	return alt != nil, alt, nil
}

func keyArg(args []any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("mirror: want one key, have %d", len(args))
	}
	k, ok := args[0].([]byte)
	if !ok {
		return nil, fmt.Errorf("mirror: want a key of bytes, have %T", args[0])
	}
	return k, nil
}

func newMirror() (*memdb.MemDB, error) {
	id := &memdb.IndexSchema{Name: indexID, Unique: true, Indexer: byKey{}}
	alt := &memdb.IndexSchema{Name: indexAlt, Unique: true, AllowMissing: true, Indexer: byAlt{}}
	table := func(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
		t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
		for _, i := range indexes {
			t.Indexes[i.Name] = i
		}
		return t
	}
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		memRows:  table(memRows, id, alt),
		memUsage: table(memUsage, id),
		memCode:  table(memCode, id),
	}})
	if err != nil {
		return nil, fmt.Errorf("make the mirror: %w", err)
	}
	return db, nil
}

// newEntry gives a record of a small kind its keys.
func newEntry(m proto.Message) *entry {
	e := &entry{value: m}
	switch v := m.(type) {
	case *mayflyv1.Namespace:
		e.key = key(prefixNamespace, v.GetName())
		e.alt = key(prefixNamespace, v.GetAccountId())
	case *mayflyv1.Function:
		e.key = key(prefixFunction, v.GetNamespace(), v.GetName())
	case *mayflyv1.Version:
		e.key = versionKey(v.GetNamespace(), v.GetFunction(), v.GetNumber())
	case *mayflyv1.Alias:
		e.key = key(prefixAlias, v.GetNamespace(), v.GetFunction(), v.GetName())
	case *statev1.AccessKeyRecord:
		e.key = key(prefixAccessKey, v.GetAccessKey().GetId())
	case *statev1.SecretRecord:
		e.key = key(prefixSecret, v.GetSecret().GetNamespace(), v.GetSecret().GetName())
	case *mayflyv1.Node:
		e.key = key(prefixNode, v.GetId())
		e.alt = key(prefixNode, v.GetName())
	case *mayflyv1.Settings:
		e.key = key(prefixSettings)
	case *statev1.ClusterRecord:
		e.key = key(prefixCluster)
	}
	return e
}

// blank is an empty record of the kind that a key names, nil if it is none that lives in memory.
func blank(prefix byte) proto.Message {
	switch prefix {
	case prefixNamespace:
		return &mayflyv1.Namespace{}
	case prefixFunction:
		return &mayflyv1.Function{}
	case prefixVersion:
		return &mayflyv1.Version{}
	case prefixAlias:
		return &mayflyv1.Alias{}
	case prefixAccessKey:
		return &statev1.AccessKeyRecord{}
	case prefixSecret:
		return &statev1.SecretRecord{}
	case prefixNode:
		return &mayflyv1.Node{}
	case prefixSettings:
		return &mayflyv1.Settings{}
	case prefixCluster:
		return &statev1.ClusterRecord{}
	}
	return nil
}

// get finds a record by its key.
func get[T proto.Message](txn *memdb.Txn, k []byte) (T, bool) { return getBy[T](txn, indexID, k) }

func getBy[T proto.Message](txn *memdb.Txn, index string, k []byte) (T, bool) {
	var none T
	raw, err := txn.First(memRows, index, k)
	if err != nil || raw == nil {
		return none, false
	}
	v, ok := raw.(*entry).value.(T)
	return v, ok
}

// scan yields the records from a key on, as long as their keys begin with prefix.
func scan[T proto.Message](txn *memdb.Txn, from, prefix []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		it, err := txn.LowerBound(memRows, indexID, from)
		if err != nil {
			return
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			e := raw.(*entry)
			if !bytes.HasPrefix(e.key, prefix) || !yield(e.value.(T)) {
				return
			}
		}
	}
}
