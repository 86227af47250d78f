package state

import (
	"math"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// DefaultNamespace always exists once a cluster is initialised.
	DefaultNamespace = "default"
	// AllNamespaces is the namespace of access keys that hold for all of them.
	AllNamespaces = "*"
)

// Quotas of a namespace whose maker left them 0. They are part of what entries mean: never change them.
const (
	DefaultFunctions   = 10_000
	DefaultConcurrency = 1_000
	DefaultCodeBytes   = 75 << 30
	// DefaultSecrets is meant by a stored quota of 0 too: older namespaces have none.
	DefaultSecrets = 1_000
)

// minUnreserved is how much of a namespace's concurrency must stay for functions without a reservation, as in AWS Lambda.
// A namespace with less than twice as much may reserve all of it.
const minUnreserved = 100

func (t *tx) createNamespace(c *statev1.CreateNamespace) (*mayflyv1.Namespace, error) {
	n := proto.CloneOf(c.GetNamespace())
	if err := t.checkNewNamespace(n); err != nil {
		return nil, err
	}
	n.Quotas = mergeQuotas(defaultQuotas(), n.GetQuotas())
	n.Meta = t.newMeta()
	t.put(nil, n)
	return n, nil
}

func (t *tx) checkNewNamespace(n *mayflyv1.Namespace) error {
	if err := checkID("the namespace's name", n.GetName()); err != nil {
		return err
	}
	if n.GetName() == AllNamespaces {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "a namespace can't be called %q: it stands for all of them", AllNamespaces)
	}
	if err := checkID("the namespace's account id", n.GetAccountId()); err != nil {
		return err
	}
	if err := checkQuotas(n.GetQuotas()); err != nil {
		return err
	}
	if _, ok := get[*mayflyv1.Namespace](t.mem, key(prefixNamespace, n.GetName())); ok {
		return exists("namespace %q exists already: choose another name", n.GetName())
	}
	if other, ok := getBy[*mayflyv1.Namespace](t.mem, indexAlt, key(prefixNamespace, n.GetAccountId())); ok {
		return exists("account id %s belongs to namespace %q already: choose another one", n.GetAccountId(), other.GetName())
	}
	return nil
}

func (t *tx) updateNamespace(c *statev1.UpdateNamespace) (*mayflyv1.Namespace, error) {
	old, err := t.namespace(c.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("namespace "+c.GetName(), c.GetExpectedRevision(), old.GetMeta()); err != nil {
		return nil, err
	}
	if err := checkQuotas(c.GetQuotas()); err != nil {
		return nil, err
	}
	n := proto.CloneOf(old)
	n.Quotas = mergeQuotas(old.GetQuotas(), c.GetQuotas())
	reserved := t.usage(n.GetName()).ReservedConcurrency
	if limit := reservable(n.GetQuotas()); reserved > limit && n.GetQuotas().GetConcurrency() < old.GetQuotas().GetConcurrency() {
		return nil, quota("namespace %q can't have concurrency %d: its functions have reserved %d, and of that quota at most %d can be reserved; lower reservations first",
			n.GetName(), n.GetQuotas().GetConcurrency(), reserved, limit)
	}
	n.Meta = t.touched(old.GetMeta())
	t.put(old, n)
	return n, nil
}

func (t *tx) deleteNamespace(c *statev1.DeleteNamespace) (*mayflyv1.Namespace, error) {
	n, err := t.namespace(c.GetName())
	if err != nil {
		return nil, err
	}
	if n.GetName() == DefaultNamespace {
		return nil, inUse("namespace %q can't be deleted: it always exists", DefaultNamespace)
	}
	if u := t.usage(n.GetName()); u.Functions > 0 || u.AccessKeys > 0 || u.Secrets > 0 {
		return nil, inUse("namespace %q can't be deleted: %d functions, %d access keys and %d secrets belong to it; delete them first",
			n.GetName(), u.Functions, u.AccessKeys, u.Secrets)
	}
	t.remove(n)
	return n, nil
}

// namespace finds one or refuses.
func (t *tx) namespace(name string) (*mayflyv1.Namespace, error) {
	n, ok := get[*mayflyv1.Namespace](t.mem, key(prefixNamespace, name))
	if !ok {
		return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_NOT_FOUND,
			"there is no namespace %q: check its name, or create it first", name)
	}
	return n, nil
}

func (t *tx) usage(namespace string) Usage { return usageIn(t.mem, namespace) }

func defaultQuotas() *mayflyv1.Quotas {
	return &mayflyv1.Quotas{Functions: DefaultFunctions, Concurrency: DefaultConcurrency, CodeBytes: DefaultCodeBytes}
}

// mergeQuotas is old with the fields of new that are not 0.
func mergeQuotas(old, new *mayflyv1.Quotas) *mayflyv1.Quotas {
	q := proto.CloneOf(old)
	if q == nil {
		q = defaultQuotas()
	}
	if v := new.GetFunctions(); v != 0 {
		q.Functions = v
	}
	if v := new.GetConcurrency(); v != 0 {
		q.Concurrency = v
	}
	if v := new.GetCodeBytes(); v != 0 {
		q.CodeBytes = v
	}
	if v := new.GetSecrets(); v != 0 {
		q.Secrets = v
	}
	if v := new.GetMaxEgress(); v != 0 {
		q.MaxEgress = v
	}
	return q
}

// checkEgress refuses a policy that is wider than the namespace's quota; the policies are numbered from the narrowest.
func checkEgress(n *mayflyv1.Namespace, c *mayflyv1.FunctionConfiguration) error {
	limit := n.GetQuotas().GetMaxEgress()
	if limit == mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED || c.GetEgress() <= limit {
		return nil
	}
	return quota("functions of namespace %q may have the egress policy %s at most, not %s: choose that, or let an admin change the namespace's max_egress",
		n.GetName(), egressName(limit), egressName(c.GetEgress()))
}

func egressName(p mayflyv1.EgressPolicy) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "EGRESS_POLICY_"))
}

func checkQuotas(q *mayflyv1.Quotas) error {
	if q.GetFunctions() < 0 || q.GetConcurrency() < 0 || q.GetCodeBytes() < 0 || q.GetSecrets() < 0 {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "a quota is negative: give a positive number, or 0 for its default or what it was")
	}
	return nil
}

// reservable is how much concurrency the functions of a namespace may reserve together.
func reservable(q *mayflyv1.Quotas) int64 {
	limit := int64(q.GetConcurrency())
	if limit >= 2*minUnreserved {
		return limit - minUnreserved
	}
	return limit
}

// checkReserved refuses a reservation that leaves too little for other functions. One that frees concurrency always passes.
func (t *tx) checkReserved(f *mayflyv1.Function, n *mayflyv1.Namespace, wanted *int32) error {
	if wanted == nil {
		return nil
	}
	if *wanted < 0 {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "the reserved concurrency %d is negative: give 0 to stop the function, or more", *wanted)
	}
	have := int64(f.GetReservedConcurrency())
	others := t.usage(n.GetName()).ReservedConcurrency - have
	limit := reservable(n.GetQuotas())
	if int64(*wanted) <= have || others+int64(*wanted) <= limit {
		return nil
	}
	return quota("can't reserve concurrency %d for function %q: namespace %q may reserve %d of its %d, and other functions have %d; reserve at most %d, or raise the namespace's quota",
		*wanted, f.GetName(), n.GetName(), limit, n.GetQuotas().GetConcurrency(), others, max(0, limit-others))
}

// checkFunctionCount refuses one function more than the quota.
func (t *tx) checkFunctionCount(n *mayflyv1.Namespace) error {
	limit := int(n.GetQuotas().GetFunctions())
	if t.usage(n.GetName()).Functions < limit {
		return nil
	}
	return quota("namespace %q may have %d functions and has them: delete one, or raise the namespace's quota", n.GetName(), limit)
}

// checkCode refuses code without a digest, with another size than other records give, or over the namespace's quota.
// drop is the code that the same change stops using, nil if there is none.
func (t *tx) checkCode(n *mayflyv1.Namespace, code, drop *mayflyv1.Code) error {
	digest, size := code.GetDigest(), code.GetSizeBytes()
	if err := checkID("the code's digest", digest); err != nil {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE, "%s", fault.From(err).Message)
	}
	if size < 0 || size > math.MaxInt64/2 {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE, "the code's size of %d bytes is impossible", size)
	}
	if known, ok := codeSize(t.mem, digest); ok && known != size {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE, "code %s has %d bytes, not %d: upload it again", digest, known, size)
	}
	before := t.usage(n.GetName()).CodeBytes
	after := before
	if t.codeRefs(n.GetName(), digest) == 0 {
		after += size
	}
	if d := drop.GetDigest(); d != "" && d != digest && t.codeRefs(n.GetName(), d) == 1 {
		after -= drop.GetSizeBytes()
	}
	if limit := n.GetQuotas().GetCodeBytes(); after > limit && after > before {
		return quota("namespace %q may have %d bytes of code and would have %d: delete functions or versions, or raise the namespace's quota", n.GetName(), limit, after)
	}
	return nil
}

func (t *tx) codeRefs(namespace, digest string) int {
	raw, err := t.mem.First(memCode, indexID, codeKey(digest, namespace))
	if err != nil || raw == nil {
		return 0
	}
	return raw.(*codeRow).refs
}

func exists(format string, args ...any) error {
	return fault.New(codes.AlreadyExists, mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS, format, args...)
}

func inUse(format string, args ...any) error {
	return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, format, args...)
}

func quota(format string, args ...any) error {
	return fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED, format, args...)
}
