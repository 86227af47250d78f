package state

import (
	"bytes"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// View is the small state after one entry, for any number of goroutines. Its records are shared: never change one.
type View struct{ p *published }

// Index is that of the last entry applied.
func (v View) Index() uint64 { return v.p.index }

// Time is the time of the last entry applied; it never goes back.
func (v View) Time() *timestamppb.Timestamp { return v.p.time }

// Changed is closed when a later entry has been applied.
func (v View) Changed() <-chan struct{} { return v.p.changed }

// Cluster has no id before InitCluster.
func (v View) Cluster() *statev1.ClusterRecord {
	c, ok := get[*statev1.ClusterRecord](v.p.txn, key(prefixCluster))
	if !ok {
		c = &statev1.ClusterRecord{}
	}
	return proto.CloneOf(c)
}

// Settings are the defaults before InitCluster.
func (v View) Settings() *mayflyv1.Settings { return settings(v.p.txn) }

// Usage is what a namespace has taken of its quotas.
func (v View) Usage(namespace string) Usage { return usageIn(v.p.txn, namespace) }

// CodeReferenced tells whether any function or version refers to the package.
func (v View) CodeReferenced(digest string) bool {
	_, ok := codeSize(v.p.txn, digest)
	return ok
}

// Namespace finds one by name.
func (v View) Namespace(name string) (*mayflyv1.Namespace, bool) {
	return get[*mayflyv1.Namespace](v.p.txn, key(prefixNamespace, name))
}

// NamespaceByAccount finds one by its account id.
func (v View) NamespaceByAccount(id string) (*mayflyv1.Namespace, bool) {
	return getBy[*mayflyv1.Namespace](v.p.txn, indexAlt, key(prefixNamespace, id))
}

// Namespaces yields all of them by name.
func (v View) Namespaces() iter.Seq[*mayflyv1.Namespace] {
	return all[*mayflyv1.Namespace](v, prefixNamespace)
}

// Function finds one by name.
func (v View) Function(namespace, name string) (*mayflyv1.Function, bool) {
	return get[*mayflyv1.Function](v.p.txn, key(prefixFunction, namespace, name))
}

// Functions yields the functions of a namespace by name, from the first one after afterName on ("": from the start).
// With namespace "" it yields those of all, by namespace and name; afterName is then NAMESPACE/NAME.
func (v View) Functions(namespace, afterName string) iter.Seq[*mayflyv1.Function] {
	if namespace != "" {
		return v.FunctionsWithPrefix(namespace, "", afterName)
	}
	from := within(prefixFunction)
	if ns, name, ok := strings.Cut(afterName, "/"); ok {
		from = after(key(prefixFunction, ns, name))
	}
	return scan[*mayflyv1.Function](v.p.txn, from, within(prefixFunction))
}

// FunctionsWithPrefix is Functions of one namespace whose names begin with prefix. It steps over no others.
func (v View) FunctionsWithPrefix(namespace, prefix, afterName string) iter.Seq[*mayflyv1.Function] {
	first := key(prefixFunction, namespace, prefix)
	from := first
	if afterName != "" {
		if k := after(key(prefixFunction, namespace, afterName)); bytes.Compare(k, from) > 0 {
			from = k
		}
	}
	return scan[*mayflyv1.Function](v.p.txn, from, first)
}

// Version finds one by number.
func (v View) Version(namespace, function string, number int64) (*mayflyv1.Version, bool) {
	return get[*mayflyv1.Version](v.p.txn, versionKey(namespace, function, number))
}

// Versions yields a function's versions with numbers greater than after.
func (v View) Versions(namespace, function string, after int64) iter.Seq[*mayflyv1.Version] {
	return versions(v.p.txn, namespace, function, after)
}

// Alias finds one by name.
func (v View) Alias(namespace, function, name string) (*mayflyv1.Alias, bool) {
	return get[*mayflyv1.Alias](v.p.txn, key(prefixAlias, namespace, function, name))
}

// Aliases yields a function's aliases by name, from the first one after afterName on.
func (v View) Aliases(namespace, function, afterName string) iter.Seq[*mayflyv1.Alias] {
	return aliases(v.p.txn, namespace, function, afterName)
}

// AccessKey finds one by id.
func (v View) AccessKey(id string) (*statev1.AccessKeyRecord, bool) {
	return get[*statev1.AccessKeyRecord](v.p.txn, key(prefixAccessKey, id))
}

// AccessKeys yields the keys of a namespace ("": all keys) by id, from the first one after afterID on.
// It steps over the keys of other namespaces.
func (v View) AccessKeys(namespace, afterID string) iter.Seq[*statev1.AccessKeyRecord] {
	from := key(prefixAccessKey, afterID)
	if afterID != "" {
		from = after(from)
	}
	return func(yield func(*statev1.AccessKeyRecord) bool) {
		for k := range scan[*statev1.AccessKeyRecord](v.p.txn, from, within(prefixAccessKey)) {
			if (namespace == "" || k.GetAccessKey().GetNamespace() == namespace) && !yield(k) {
				return
			}
		}
	}
}

// Node finds one by id.
func (v View) Node(id string) (*mayflyv1.Node, bool) {
	return get[*mayflyv1.Node](v.p.txn, key(prefixNode, id))
}

// NodeByName finds one by name.
func (v View) NodeByName(name string) (*mayflyv1.Node, bool) {
	return getBy[*mayflyv1.Node](v.p.txn, indexAlt, key(prefixNode, name))
}

// Nodes yields all of them by id.
func (v View) Nodes() iter.Seq[*mayflyv1.Node] { return all[*mayflyv1.Node](v, prefixNode) }

func all[T proto.Message](v View, prefix byte) iter.Seq[T] {
	return scan[T](v.p.txn, within(prefix), within(prefix))
}
