package state

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Latest is the qualifier of a function's unpublished code and configuration.
const Latest = "$LATEST"

func (t *tx) createFunction(c *statev1.CreateFunction) (*mayflyv1.Function, error) {
	f := proto.CloneOf(c.GetFunction())
	n, err := t.namespace(f.GetNamespace())
	if err != nil {
		return nil, err
	}
	if err := t.checkNewFunction(f, n); err != nil {
		return nil, err
	}
	if f.Configuration == nil {
		f.Configuration = &mayflyv1.FunctionConfiguration{}
	}
	f.Meta = t.newMeta()
	f.Arn = t.functionARN(n, f.GetName())
	f.State = mayflyv1.FunctionState_FUNCTION_STATE_PENDING
	f.LastVersion = 0
	f.CodeRevision = t.index
	if c.GetPublish() {
		t.publish(f, "")
	}
	t.put(nil, f)
	return f, nil
}

func (t *tx) checkNewFunction(f *mayflyv1.Function, n *mayflyv1.Namespace) error {
	if err := checkID("the function's name", f.GetName()); err != nil {
		return err
	}
	if _, ok := t.findFunction(f.GetNamespace(), f.GetName()); ok {
		return exists("function %q exists already in namespace %q: update it, or choose another name", f.GetName(), n.GetName())
	}
	if err := t.checkFunctionCount(n); err != nil {
		return err
	}
	if err := checkEgress(n, f.GetConfiguration()); err != nil {
		return err
	}
	if err := t.checkCode(n, f.GetCode(), nil); err != nil {
		return err
	}
	if err := t.checkSecrets(n.GetName(), f.GetConfiguration()); err != nil {
		return err
	}
	if err := t.checkReserved(&mayflyv1.Function{Name: f.GetName()}, n, f.ReservedConcurrency); err != nil {
		return err
	}
	if q := f.GetUrl().GetQualifier(); q != "" && q != Latest {
		return t.noQualifier(f, q)
	}
	return nil
}

func (t *tx) updateFunctionCode(c *statev1.UpdateFunctionCode) (*mayflyv1.Function, error) {
	old, n, err := t.functionAt(c.GetNamespace(), c.GetName(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	if err := t.checkCode(n, c.GetCode(), old.GetCode()); err != nil {
		return nil, err
	}
	if err := t.checkSecrets(n.GetName(), old.GetConfiguration()); err != nil {
		return nil, err
	}
	f := t.editFunction(old)
	if !proto.Equal(old.GetCode(), c.GetCode()) {
		f.Code = proto.CloneOf(c.GetCode())
		f.CodeRevision = t.index
		f.State, f.StateReason = mayflyv1.FunctionState_FUNCTION_STATE_PENDING, ""
	}
	if c.GetPublish() && t.published(f) == nil {
		t.publish(f, "")
	}
	t.put(old, f)
	return f, nil
}

func (t *tx) updateFunctionConfiguration(c *statev1.UpdateFunctionConfiguration) (*mayflyv1.Function, error) {
	old, n, err := t.functionAt(c.GetNamespace(), c.GetName(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	if err := checkEgress(n, c.GetConfiguration()); err != nil {
		return nil, err
	}
	f := t.editFunction(old)
	mergeConfiguration(f.GetConfiguration(), c.GetConfiguration())
	for _, field := range c.GetReplace() {
		if err := replaceField(f, field, c); err != nil {
			return nil, err
		}
	}
	if runsOtherwise(old.GetConfiguration(), f.GetConfiguration()) {
		if err := t.checkSecrets(f.GetNamespace(), f.GetConfiguration()); err != nil {
			return nil, err
		}
		f.CodeRevision = t.index
	}
	if old.GetConfiguration().GetRuntime() != f.GetConfiguration().GetRuntime() {
		f.State, f.StateReason = mayflyv1.FunctionState_FUNCTION_STATE_PENDING, ""
	}
	t.put(old, f)
	return f, nil
}

// mergeConfiguration sets the fields of c that new sets.
func mergeConfiguration(c, new *mayflyv1.FunctionConfiguration) {
	if v := new.GetRuntime(); v != "" {
		c.Runtime = v
	}
	if v := new.GetHandler(); v != "" {
		c.Handler = v
	}
	if v := new.GetMemoryMb(); v != 0 {
		c.MemoryMb = v
	}
	if v := new.GetTimeout(); v != nil {
		c.Timeout = proto.CloneOf(v)
	}
	if v := new.GetEphemeralStorageMb(); v != 0 {
		c.EphemeralStorageMb = v
	}
	if v := new.GetEgress(); v != 0 {
		c.Egress = v
	}
}

func replaceField(f *mayflyv1.Function, field string, c *statev1.UpdateFunctionConfiguration) error {
	switch field {
	case "description":
		f.Configuration.Description = c.GetConfiguration().GetDescription()
	case "environment":
		f.Configuration.Environment = maps.Clone(c.GetConfiguration().GetEnvironment())
	case "secret_environment":
		f.Configuration.SecretEnvironment = maps.Clone(c.GetConfiguration().GetSecretEnvironment())
	case "secret_files":
		f.Configuration.SecretFiles = slices.Clone(c.GetConfiguration().GetSecretFiles())
	case "tags":
		f.Tags = maps.Clone(c.GetTags())
	default:
		return unknownField(field, "description, environment, secret_environment, secret_files and tags")
	}
	return nil
}

func unknownField(field, known string) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "can't replace %q: only %s can be replaced", field, known)
}

// runsOtherwise tells whether sandboxes of one configuration may not serve the other. The description doesn't matter.
func runsOtherwise(a, b *mayflyv1.FunctionConfiguration) bool {
	b = proto.CloneOf(b)
	b.Description = a.GetDescription()
	return !proto.Equal(a, b)
}

func (t *tx) deleteFunction(c *statev1.DeleteFunction) (*mayflyv1.Function, error) {
	f, _, err := t.functionAt(c.GetNamespace(), c.GetName(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	for _, v := range collect(versions(t.mem, f.GetNamespace(), f.GetName(), 0)) {
		t.remove(v)
	}
	for _, a := range collect(aliases(t.mem, f.GetNamespace(), f.GetName(), "")) {
		t.remove(a)
	}
	t.remove(f)
	return f, nil
}

// setFunctionState leaves the revision alone: a state is observed, and must not make its owner's next change a conflict.
func (t *tx) setFunctionState(c *statev1.SetFunctionState) (*mayflyv1.Function, error) {
	old, _, err := t.functionAt(c.GetNamespace(), c.GetName(), 0)
	if err != nil {
		return nil, err
	}
	if c.GetState() == mayflyv1.FunctionState_FUNCTION_STATE_UNSPECIFIED {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "function %q can't have no state: name one", c.GetName())
	}
	same := old.GetState() == c.GetState() && old.GetStateReason() == c.GetStateReason()
	if same || old.GetCodeRevision() != c.GetCodeRevision() {
		return old, nil
	}
	f := proto.CloneOf(old)
	f.State, f.StateReason = c.GetState(), c.GetStateReason()
	t.put(old, f)
	return f, nil
}

func (t *tx) setFunctionConcurrency(c *statev1.SetFunctionConcurrency) (*mayflyv1.Function, error) {
	old, n, err := t.functionAt(c.GetNamespace(), c.GetName(), 0)
	if err != nil {
		return nil, err
	}
	if err := t.checkReserved(old, n, c.ReservedConcurrency); err != nil {
		return nil, err
	}
	f := t.editFunction(old)
	f.ReservedConcurrency = nil
	if c.ReservedConcurrency != nil {
		f.ReservedConcurrency = new(c.GetReservedConcurrency())
	}
	t.put(old, f)
	return f, nil
}

func (t *tx) setFunctionURL(c *statev1.SetFunctionUrl) (*mayflyv1.Function, error) {
	old, _, err := t.functionAt(c.GetNamespace(), c.GetName(), 0)
	if err != nil {
		return nil, err
	}
	if err := t.noQualifier(old, c.GetUrl().GetQualifier()); err != nil {
		return nil, err
	}
	f := t.editFunction(old)
	f.Url = proto.CloneOf(c.GetUrl())
	t.put(old, f)
	return f, nil
}

// editFunction is a copy of a function to change, its meta already of this entry.
func (t *tx) editFunction(old *mayflyv1.Function) *mayflyv1.Function {
	f := proto.CloneOf(old)
	f.Meta = t.touched(old.GetMeta())
	return f
}

func (t *tx) findFunction(namespace, name string) (*mayflyv1.Function, bool) {
	return get[*mayflyv1.Function](t.mem, key(prefixFunction, namespace, name))
}

// functionAt finds a function and its namespace, or refuses; revision is the expected one, 0 for any.
func (t *tx) functionAt(namespace, name string, revision uint64) (*mayflyv1.Function, *mayflyv1.Namespace, error) {
	n, err := t.namespace(namespace)
	if err != nil {
		return nil, nil, err
	}
	f, ok := t.findFunction(namespace, name)
	if !ok {
		return nil, nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND,
			"there is no function %q in namespace %q: check its name, or create it first", name, namespace)
	}
	if err := checkRevision("function "+name, revision, f.GetMeta()); err != nil {
		return nil, nil, err
	}
	return f, n, nil
}

func (t *tx) functionARN(n *mayflyv1.Namespace, name string) string {
	return fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", settings(t.mem).GetRegion(), n.GetAccountId(), name)
}
