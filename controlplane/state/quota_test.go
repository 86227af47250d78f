package state_test

import (
	"testing"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestNamespaces(t *testing.T) {
	m := ready(t)
	n := m.ok(createNamespace("team", "000000000002", &mayflyv1.Quotas{Functions: 1})).GetNamespace()
	if q := n.GetQuotas(); q.GetFunctions() != 1 || q.GetConcurrency() != 1000 || q.GetCodeBytes() != 75<<30 {
		t.Fatalf("quotas %v", q)
	}
	m.refused(exists, createNamespace("team", "000000000003", nil))
	m.refused(exists, createNamespace("other", "000000000002", nil))
	m.refused(badName, createNamespace("*", "000000000003", nil))
	m.refused(badName, createNamespace("", "000000000003", nil))
	m.refused(invalid, createNamespace("x", "000000000003", &mayflyv1.Quotas{CodeBytes: -1}))
	if found, ok := m.state.View().NamespaceByAccount("000000000002"); !ok || found.GetName() != "team" {
		t.Fatalf("by account: %v", found)
	}
	m.ok(createFunction("team", "f", 1))
	m.refused(overQuota, createFunction("team", "g", 1))
	m.refused(conflict, updateNamespace("team", &mayflyv1.Quotas{Functions: 2}, 1))
	m.ok(updateNamespace("team", &mayflyv1.Quotas{Functions: 2}, n.GetMeta().GetRevision()))
	m.ok(createFunction("team", "g", 1))
	m.refused(noNamespace, updateNamespace("none", nil, 0))

	m.refused(inUse, deleteNamespace("default"))
	m.refused(inUse, deleteNamespace("team"))
	m.ok(createKey("AKIA1", "team", developer))
	for _, f := range []string{"f", "g"} {
		m.ok(&statev1.Command{Operation: &statev1.Command_DeleteFunction{DeleteFunction: &statev1.DeleteFunction{Namespace: "team", Name: f}}})
	}
	m.refused(inUse, deleteNamespace("team"))
	m.ok(deleteKey("AKIA1"))
	m.ok(deleteNamespace("team"))
	m.refused(noNamespace, deleteNamespace("team"))
	m.ok(createNamespace("again", "000000000002", nil))
}

func TestEgressQuota(t *testing.T) {
	m := ready(t)
	with := func(c *statev1.Command, p mayflyv1.EgressPolicy) *statev1.Command {
		if f := c.GetCreateFunction().GetFunction(); f != nil {
			f.Configuration.Egress = p
		}
		return c
	}
	change := func(p mayflyv1.EgressPolicy) *statev1.Command {
		return updateConfiguration(&statev1.UpdateFunctionConfiguration{
			Name: "f", Configuration: &mayflyv1.FunctionConfiguration{Egress: p, MemoryMb: 256},
		})
	}
	const none, internet, all = mayflyv1.EgressPolicy_EGRESS_POLICY_NONE, mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET, mayflyv1.EgressPolicy_EGRESS_POLICY_ALL
	m.ok(with(createFunction("default", "f", 1), all))
	m.ok(updateNamespace("default", &mayflyv1.Quotas{MaxEgress: internet}, 0))
	m.refused(overQuota, with(createFunction("default", "g", 1), all))
	m.ok(with(createFunction("default", "g", 1), internet))
	m.refused(overQuota, change(all))
	m.ok(change(mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED)) // it keeps what it has
	if f, _ := m.state.View().Function("default", "f"); f.GetConfiguration().GetEgress() != all {
		t.Errorf("egress is %s", f.GetConfiguration().GetEgress())
	}
	before, _ := m.state.View().Function("default", "f")
	after := m.ok(change(none)).GetFunction()
	if after.GetConfiguration().GetEgress() != none || after.GetCodeRevision() == before.GetCodeRevision() {
		t.Errorf("sandboxes with the old policy may go on: %v", after)
	}
	m.ok(updateNamespace("default", &mayflyv1.Quotas{MaxEgress: all}, 0))
	m.ok(change(all))
}

// A package counts once in a namespace, whoever refers to it.
func TestCodeQuota(t *testing.T) {
	m := ready(t)
	m.ok(updateNamespace("default", &mayflyv1.Quotas{CodeBytes: 210}, 0))
	m.ok(createFunction("default", "a", 1))
	m.ok(createFunction("default", "b", 1))
	m.ok(publish(&statev1.PublishVersion{Function: "a"}))
	if u := m.state.View().Usage("default"); u.CodeBytes != 101 || u.Functions != 2 {
		t.Fatalf("usage %+v", u)
	}
	m.ok(updateCode("a", 2, 0))
	m.refused(overQuota, updateCode("b", 3, 0))
	m.refused(overQuota, createFunction("default", "c", 3))
	// The old package goes with its last user, in the same change.
	m.ok(updateCode("a", 4, 0))
	m.ok(updateNamespace("default", &mayflyv1.Quotas{CodeBytes: 10}, 0))
	m.ok(updateCode("a", 1, 0))
	if u := m.state.View().Usage("default"); u.CodeBytes != 101 {
		t.Fatalf("usage %+v", u)
	}
	m.ok(createNamespace("other", "000000000002", nil))
	bad := createFunction("other", "f", 1)
	bad.GetCreateFunction().GetFunction().GetCode().SizeBytes++
	m.refused(badCode, bad)
	bad.GetCreateFunction().GetFunction().Code = nil
	m.refused(badCode, bad)
}
