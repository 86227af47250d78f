package state

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// weightSlack lets sums such as 0.1 + 0.2 + 0.7 pass.
const weightSlack = 1e-9

func (t *tx) createAlias(c *statev1.CreateAlias) (*mayflyv1.Alias, error) {
	a := proto.CloneOf(c.GetAlias())
	f, _, err := t.functionAt(a.GetNamespace(), a.GetFunction(), 0)
	if err != nil {
		return nil, err
	}
	if err := checkID("the alias's name", a.GetName()); err != nil {
		return nil, err
	}
	if _, ok := t.findAlias(f, a.GetName()); ok {
		return nil, exists("alias %q of function %q exists already: update it, or choose another name", a.GetName(), f.GetName())
	}
	if err := t.checkAlias(f, a); err != nil {
		return nil, err
	}
	a.Meta = t.newMeta()
	a.Arn = fmt.Sprintf("%s:%s", f.GetArn(), a.GetName())
	t.put(nil, a)
	return a, nil
}

func (t *tx) updateAlias(c *statev1.UpdateAlias) (*mayflyv1.Alias, error) {
	old, f, err := t.aliasAt(c.GetNamespace(), c.GetFunction(), c.GetName(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	a := proto.CloneOf(old)
	if c.GetVersion() != "" {
		a.Version = c.GetVersion()
	}
	for _, field := range c.GetReplace() {
		switch field {
		case "description":
			a.Description = c.GetDescription()
		case "weights":
			a.Weights = maps.Clone(c.GetWeights())
		default:
			return nil, unknownField(field, "description and weights")
		}
	}
	if err := t.checkAlias(f, a); err != nil {
		return nil, err
	}
	a.Meta = t.touched(old.GetMeta())
	t.put(old, a)
	return a, nil
}

func (t *tx) deleteAlias(c *statev1.DeleteAlias) (*mayflyv1.Alias, error) {
	a, f, err := t.aliasAt(c.GetNamespace(), c.GetFunction(), c.GetName(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	if f.GetUrl().GetQualifier() == a.GetName() {
		return nil, inUse("alias %q of function %q can't be deleted: the function's URL calls it; change the URL first", a.GetName(), f.GetName())
	}
	t.remove(a)
	return a, nil
}

// checkAlias refuses versions that don't exist and weights that are no shares.
func (t *tx) checkAlias(f *mayflyv1.Function, a *mayflyv1.Alias) error {
	if a.GetVersion() == Latest {
		if len(a.GetWeights()) > 0 {
			return badWeights(a, "an alias of $LATEST can't have weights: let it name a version, or remove them")
		}
		return nil
	}
	if err := t.checkVersion(f, a.GetVersion()); err != nil {
		return err
	}
	// The order of a sum of floats matters.
	sum := 0.0
	for _, version := range slices.Sorted(maps.Keys(a.GetWeights())) {
		w := a.GetWeights()[version]
		if err := t.checkVersion(f, version); err != nil {
			return err
		}
		if version == a.GetVersion() {
			return badWeights(a, fmt.Sprintf("version %s gets the rest: give weights to other versions only", version))
		}
		if !(w >= 0 && w <= 1) {
			return badWeights(a, fmt.Sprintf("the weight %g of version %s is not between 0 and 1", w, version))
		}
		sum += w
	}
	if sum > 1+weightSlack {
		return badWeights(a, fmt.Sprintf("the weights are %g together: at most 1 can be shared out", sum))
	}
	return nil
}

func badWeights(a *mayflyv1.Alias, problem string) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "alias %q of function %q: %s", a.GetName(), a.GetFunction(), problem)
}

func (t *tx) findAlias(f *mayflyv1.Function, name string) (*mayflyv1.Alias, bool) {
	return get[*mayflyv1.Alias](t.mem, key(prefixAlias, f.GetNamespace(), f.GetName(), name))
}

// aliasAt finds an alias and its function, or refuses; revision is the expected one, 0 for any.
func (t *tx) aliasAt(namespace, function, name string, revision uint64) (*mayflyv1.Alias, *mayflyv1.Function, error) {
	f, _, err := t.functionAt(namespace, function, 0)
	if err != nil {
		return nil, nil, err
	}
	a, ok := t.findAlias(f, name)
	if !ok {
		return nil, nil, noAlias(function, name)
	}
	if err := checkRevision("alias "+name, revision, a.GetMeta()); err != nil {
		return nil, nil, err
	}
	return a, f, nil
}

func noAlias(function, name string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_ALIAS_NOT_FOUND,
		"function %q has no alias %q: check its name, or create it first", function, name)
}

// noQualifier refuses a qualifier that names no version or alias of f.
func (t *tx) noQualifier(f *mayflyv1.Function, qualifier string) error {
	if qualifier == "" || qualifier == Latest {
		return nil
	}
	if _, err := strconv.ParseInt(qualifier, 10, 64); err == nil {
		return t.checkVersion(f, qualifier)
	}
	if _, ok := t.findAlias(f, qualifier); !ok {
		return noAlias(f.GetName(), qualifier)
	}
	return nil
}

// aliases yields a function's aliases with names after one.
func aliases(txn *memdb.Txn, namespace, function, afterName string) iter.Seq[*mayflyv1.Alias] {
	from := key(prefixAlias, namespace, function, afterName)
	if afterName != "" {
		from = after(from)
	}
	return scan[*mayflyv1.Alias](txn, from, within(prefixAlias, namespace, function))
}
