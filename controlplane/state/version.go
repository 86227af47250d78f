package state

import (
	"fmt"
	"iter"
	"slices"
	"strconv"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (t *tx) publishVersion(c *statev1.PublishVersion) (*mayflyv1.Version, error) {
	old, _, err := t.functionAt(c.GetNamespace(), c.GetFunction(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	if want, have := c.GetCodeDigest(), old.GetCode().GetDigest(); want != "" && want != have {
		return nil, fault.New(codes.Aborted, mayflyv1.ErrorReason_ERROR_REASON_REVISION_CONFLICT,
			"function %q has code %s, not %s: read it again and publish what it has", old.GetName(), have, want)
	}
	if v := t.published(old); v != nil {
		return v, nil
	}
	f := t.editFunction(old)
	v := t.publish(f, c.GetDescription())
	t.put(old, f)
	return v, nil
}

// published is the function's last version if nothing changed since, else nil.
func (t *tx) published(f *mayflyv1.Function) *mayflyv1.Version {
	v, ok := t.findVersion(f, f.GetLastVersion())
	if !ok || v.GetCodeRevision() != f.GetCodeRevision() {
		return nil
	}
	return v
}

// publish writes the next version of f, and counts it in f, which the caller writes.
func (t *tx) publish(f *mayflyv1.Function, description string) *mayflyv1.Version {
	f.LastVersion++
	if description == "" {
		description = f.GetConfiguration().GetDescription()
	}
	v := &mayflyv1.Version{
		Meta:          t.newMeta(),
		Namespace:     f.GetNamespace(),
		Function:      f.GetName(),
		Number:        f.GetLastVersion(),
		Arn:           fmt.Sprintf("%s:%d", f.GetArn(), f.GetLastVersion()),
		Description:   description,
		Configuration: proto.CloneOf(f.GetConfiguration()),
		Code:          proto.CloneOf(f.GetCode()),
		CodeRevision:  f.GetCodeRevision(),
	}
	t.put(nil, v)
	return v
}

func (t *tx) deleteVersion(c *statev1.DeleteVersion) (*mayflyv1.Version, error) {
	f, _, err := t.functionAt(c.GetNamespace(), c.GetFunction(), 0)
	if err != nil {
		return nil, err
	}
	v, ok := t.findVersion(f, c.GetNumber())
	if !ok {
		return nil, noVersion(f.GetName(), strconv.FormatInt(c.GetNumber(), 10))
	}
	name := strconv.FormatInt(v.GetNumber(), 10)
	for a := range aliases(t.mem, f.GetNamespace(), f.GetName(), "") {
		if _, weighted := a.GetWeights()[name]; weighted || a.GetVersion() == name {
			return nil, inUse("version %s of function %q can't be deleted: alias %q names it; change or delete the alias first", name, f.GetName(), a.GetName())
		}
	}
	if f.GetUrl().GetQualifier() == name {
		return nil, inUse("version %s of function %q can't be deleted: the function's URL calls it; change the URL first", name, f.GetName())
	}
	t.remove(v)
	return v, nil
}

func (t *tx) findVersion(f *mayflyv1.Function, number int64) (*mayflyv1.Version, bool) {
	return get[*mayflyv1.Version](t.mem, versionKey(f.GetNamespace(), f.GetName(), number))
}

// checkVersion refuses a version that doesn't exist; only a plain decimal number names one.
func (t *tx) checkVersion(f *mayflyv1.Function, version string) error {
	number, err := strconv.ParseInt(version, 10, 64)
	if err != nil || strconv.FormatInt(number, 10) != version {
		return noVersion(f.GetName(), version)
	}
	if _, ok := t.findVersion(f, number); !ok {
		return noVersion(f.GetName(), version)
	}
	return nil
}

func noVersion(function, version string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_VERSION_NOT_FOUND,
		"function %q has no version %s: name one that it has, or publish one", function, version)
}

// versions yields a function's versions with numbers greater than after.
func versions(txn *memdb.Txn, namespace, function string, after int64) iter.Seq[*mayflyv1.Version] {
	from := versionKey(namespace, function, max(after, 0)+1)
	return scan[*mayflyv1.Version](txn, from, within(prefixVersion, namespace, function))
}

func collect[T any](s iter.Seq[T]) []T { return slices.Collect(s) }
