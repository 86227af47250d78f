package state_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	exists      = mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS
	conflict    = mayflyv1.ErrorReason_ERROR_REASON_REVISION_CONFLICT
	inUse       = mayflyv1.ErrorReason_ERROR_REASON_IN_USE
	overQuota   = mayflyv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED
	invalid     = mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT
	badName     = mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME
	badCode     = mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE
	noFunction  = mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND
	noVersion   = mayflyv1.ErrorReason_ERROR_REASON_VERSION_NOT_FOUND
	noAlias     = mayflyv1.ErrorReason_ERROR_REASON_ALIAS_NOT_FOUND
	noNamespace = mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_NOT_FOUND
	noKey       = mayflyv1.ErrorReason_ERROR_REASON_ACCESS_KEY_NOT_FOUND
	noNode      = mayflyv1.ErrorReason_ERROR_REASON_NODE_NOT_FOUND
	pending     = mayflyv1.FunctionState_FUNCTION_STATE_PENDING
	active      = mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE
	developer   = mayflyv1.Role_ROLE_DEVELOPER
)

func TestInitClusterOnce(t *testing.T) {
	m := newMachine(t)
	defer m.close()
	m.refused(noNamespace, createFunction("default", "f", 1))
	if s := m.state.View().Settings(); s.GetRegion() != "us-east-1" || s.GetUrlDomain() != "localhost" {
		t.Fatalf("settings before the cluster: %v", s)
	}
	c := initCluster()
	c.GetInitCluster().Settings = &mayflyv1.Settings{Region: "eu-7"}
	r := m.ok(c)
	n, ok := m.state.View().Namespace("default")
	if !ok || n.GetAccountId() != "000000000001" || n.GetQuotas().GetFunctions() != 10000 ||
		n.GetQuotas().GetConcurrency() != 1000 || n.GetQuotas().GetCodeBytes() != 75<<30 {
		t.Fatalf("default namespace %v", n)
	}
	again := initCluster()
	again.ProposalId = ""
	again.GetInitCluster().ClusterId = "c2"
	before := m.records()
	if r2 := m.ok(again); !proto.Equal(r2.GetSettings(), r.GetSettings()) || r2.GetSettings().GetRegion() != "eu-7" {
		t.Fatalf("second init answered %v, the first %v", r2, r)
	}
	if m.records() != before {
		t.Fatal("a second init changed something")
	}
	if id := m.state.View().Cluster().GetClusterId(); id != "c1" {
		t.Fatalf("cluster id %q", id)
	}
}

func TestFunctionLifeCycle(t *testing.T) {
	m := ready(t)
	c := createFunction("default", "f", 1)
	c.Time = at(100)
	f := m.ok(c).GetFunction()
	want := &mayflyv1.Function{
		Meta:      &mayflyv1.Meta{Revision: m.index, CreatedAt: at(100), UpdatedAt: at(100)},
		Namespace: "default", Name: "f", Arn: "arn:aws:lambda:us-east-1:000000000001:function:f",
		Configuration: configuration(), Code: code(1), State: pending, CodeRevision: m.index,
	}
	if !proto.Equal(f, want) {
		t.Fatalf("created %v, want %v", f, want)
	}
	if r := m.refused(exists, createFunction("default", "f", 2)); r.GetCode() != int32(codes.AlreadyExists) {
		t.Fatalf("code %v", r)
	}

	// A state belongs to one code revision, and is no change of its owner's.
	m.ok(setState("f", f.GetCodeRevision()-1, active))
	if g, _ := m.state.View().Function("default", "f"); g.GetState() != pending {
		t.Fatalf("a state of another code revision was taken: %v", g)
	}
	m.ok(setState("f", f.GetCodeRevision(), active))
	g, _ := m.state.View().Function("default", "f")
	if g.GetState() != active || g.GetMeta().GetRevision() != f.GetMeta().GetRevision() {
		t.Fatalf("after activation: %v", g)
	}

	// New code starts over; the same code does not.
	m.refused(conflict, updateCode("f", 2, 77))
	m.ok(updateCode("f", 1, g.GetMeta().GetRevision()))
	same, _ := m.state.View().Function("default", "f")
	if same.GetCodeRevision() != g.GetCodeRevision() || same.GetState() != active || same.GetMeta().GetRevision() != m.index {
		t.Fatalf("the same code again: %v", same)
	}
	u := updateCode("f", 2, 0)
	u.Time = at(50)
	m.ok(u)
	g, _ = m.state.View().Function("default", "f")
	if g.GetCodeRevision() != m.index || g.GetState() != pending || !proto.Equal(g.GetMeta().GetUpdatedAt(), at(100)) || !proto.Equal(g.GetMeta().GetCreatedAt(), at(100)) {
		t.Fatalf("after new code with an early clock: %v", g)
	}

	m.refused(conflict, deleteFunction("f", 1))
	m.ok(deleteFunction("f", g.GetMeta().GetRevision()))
	m.refused(noFunction, deleteFunction("f", 0))
	m.refused(noFunction, updateCode("f", 1, 0))
	m.refused(noNamespace, createFunction("nowhere", "f", 1))
	m.refused(badName, createFunction("default", "", 1))
	m.refused(badName, createFunction("default", "a\x00b", 1))
}

func TestConfigurationChanges(t *testing.T) {
	m := ready(t)
	m.ok(createFunction("default", "f", 1))
	m.ok(setState("f", m.index, active))
	type u = statev1.UpdateFunctionConfiguration
	type conf = mayflyv1.FunctionConfiguration
	for _, c := range []struct {
		name            string
		update          *u
		restarts, pends bool
		check           func(f *mayflyv1.Function) bool
	}{
		{"nothing", &u{}, false, false, func(f *mayflyv1.Function) bool { return proto.Equal(f.GetConfiguration(), configuration()) }},
		{"memory", &u{Configuration: &conf{MemoryMb: 256}}, true, false, func(f *mayflyv1.Function) bool { return f.GetConfiguration().GetMemoryMb() == 256 }},
		{"the same memory", &u{Configuration: &conf{MemoryMb: 256}}, false, false, nil},
		{"description unnamed", &u{Configuration: &conf{Description: "d"}}, false, false, func(f *mayflyv1.Function) bool { return f.GetConfiguration().GetDescription() == "" }},
		{"description", &u{Configuration: &conf{Description: "d"}, Replace: []string{"description"}}, false, false, func(f *mayflyv1.Function) bool { return f.GetConfiguration().GetDescription() == "d" }},
		{"environment", &u{Configuration: &conf{Environment: map[string]string{"A": "b"}}, Replace: []string{"environment"}}, true, false, func(f *mayflyv1.Function) bool { return f.GetConfiguration().GetEnvironment()["A"] == "b" }},
		{"tags", &u{Tags: map[string]string{"x": "y"}, Replace: []string{"tags"}}, false, false, func(f *mayflyv1.Function) bool { return f.GetTags()["x"] == "y" }},
		{"no environment", &u{Replace: []string{"environment", "tags"}}, true, false, func(f *mayflyv1.Function) bool {
			return len(f.GetConfiguration().GetEnvironment())+len(f.GetTags()) == 0
		}},
		{"handler", &u{Configuration: &conf{Handler: "b.c"}}, true, false, nil},
		{"runtime", &u{Configuration: &conf{Runtime: "nodejs18"}}, true, true, nil},
	} {
		before, _ := m.state.View().Function("default", "f")
		c.update.Name = "f"
		m.ok(updateConfiguration(c.update))
		f, _ := m.state.View().Function("default", "f")
		if (f.GetCodeRevision() == m.index) != c.restarts || !c.restarts && f.GetCodeRevision() != before.GetCodeRevision() ||
			(f.GetState() == pending) != c.pends || f.GetMeta().GetRevision() != m.index || c.check != nil && !c.check(f) {
			t.Fatalf("%s: %v, before %v", c.name, f, before)
		}
	}
	m.refused(invalid, updateConfiguration(&u{Name: "f", Replace: []string{"handler"}}))
	m.refused(conflict, updateConfiguration(&u{Name: "f", ExpectedRevision: 1}))
	m.refused(noFunction, updateConfiguration(&u{Name: "g"}))

	before, _ := m.state.View().Function("default", "f")
	m.ok(reserve("f", proto.Int32(3)))
	m.ok(setURL("f", &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE}))
	f, _ := m.state.View().Function("default", "f")
	if f.GetCodeRevision() != before.GetCodeRevision() || f.GetReservedConcurrency() != 3 || f.GetUrl() == nil {
		t.Fatalf("concurrency and URL: %v", f)
	}
	m.ok(reserve("f", nil))
	m.ok(setURL("f", nil))
	if f, _ := m.state.View().Function("default", "f"); f.ReservedConcurrency != nil || f.GetUrl() != nil {
		t.Fatalf("concurrency and URL removed: %v", f)
	}
}

func TestVersions(t *testing.T) {
	m := ready(t)
	c := createFunction("default", "f", 1)
	c.GetCreateFunction().Publish = true
	f := m.ok(c).GetFunction()
	v1, ok := m.state.View().Version("default", "f", 1)
	if !ok || f.GetLastVersion() != 1 || v1.GetArn() != f.GetArn()+":1" || v1.GetCodeRevision() != f.GetCodeRevision() || !proto.Equal(v1.GetCode(), code(1)) {
		t.Fatalf("version 1 is %v of %v", v1, f)
	}
	if v := m.ok(publish(&statev1.PublishVersion{Function: "f", Description: "again"})).GetVersion(); !proto.Equal(v, v1) {
		t.Fatalf("nothing changed, and %v was published", v)
	}
	m.refused(conflict, publish(&statev1.PublishVersion{Function: "f", CodeDigest: digest(9)}))
	m.refused(conflict, publish(&statev1.PublishVersion{Function: "f", ExpectedRevision: 99}))
	m.refused(noFunction, publish(&statev1.PublishVersion{Function: "g"}))

	u := updateCode("f", 2, 0)
	u.GetUpdateFunctionCode().Publish = true
	m.ok(u)
	m.ok(u)
	if f, _ := m.state.View().Function("default", "f"); f.GetLastVersion() != 2 {
		t.Fatalf("the same code was published again: %v", f)
	}

	// Numbers are never used twice, and the frozen version keeps what it had.
	m.ok(deleteVersion("f", 2))
	m.refused(noVersion, deleteVersion("f", 2))
	if v := m.ok(publish(&statev1.PublishVersion{Function: "f", CodeDigest: digest(2), Description: "third"})).GetVersion(); v.GetNumber() != 3 || v.GetDescription() != "third" {
		t.Fatalf("after deleting version 2 came %v", v)
	}
	if v, _ := m.state.View().Version("default", "f", 1); !proto.Equal(v.GetCode(), code(1)) {
		t.Fatalf("version 1 became %v", v)
	}
	var numbers []int64
	for v := range m.state.View().Versions("default", "f", 1) {
		numbers = append(numbers, v.GetNumber())
	}
	if !slices.Equal(numbers, []int64{3}) {
		t.Fatalf("versions after 1: %v", numbers)
	}
	m.ok(createAlias("f", "live", "3", nil))
	m.ok(deleteFunction("f", 0))
	v := m.state.View()
	if _, ok := v.Version("default", "f", 1); ok || v.CodeReferenced(digest(1)) || v.CodeReferenced(digest(2)) {
		t.Fatal("a deleted function left versions or code")
	}
	if _, ok := v.Alias("default", "f", "live"); ok {
		t.Fatal("a deleted function left an alias")
	}
}

func TestAliases(t *testing.T) {
	m := ready(t)
	for i := range 3 {
		if i == 0 {
			m.ok(createFunction("default", "f", 0))
		} else {
			m.ok(updateCode("f", i, 0))
		}
		m.ok(publish(&statev1.PublishVersion{Function: "f"}))
	}
	a := m.ok(createAlias("f", "live", "1", map[string]float64{"2": 0.1, "3": 0.9})).GetAlias()
	if a.GetArn() != "arn:aws:lambda:us-east-1:000000000001:function:f:live" || a.GetMeta().GetRevision() != m.index {
		t.Fatalf("alias %v", a)
	}
	m.ok(createAlias("f", "latest", "$LATEST", nil))
	m.refused(exists, createAlias("f", "live", "1", nil))
	m.refused(noFunction, createAlias("g", "live", "1", nil))
	m.refused(badName, createAlias("f", "", "1", nil))
	for _, v := range []string{"", "4", "x", "01", "-1", "0"} {
		m.refused(noVersion, createAlias("f", "x", v, nil))
	}
	m.refused(noVersion, createAlias("f", "x", "1", map[string]float64{"4": 0.1}))
	for _, w := range []map[string]float64{{"2": 1.1}, {"2": -0.1}, {"2": math.NaN()}, {"2": 0.6, "3": 0.6}, {"1": 0.5}} {
		m.refused(invalid, createAlias("f", "x", "1", w))
	}
	m.refused(invalid, createAlias("f", "x", "$LATEST", map[string]float64{"1": 0.5}))

	for _, n := range []int64{1, 2, 3} {
		if r := m.refused(inUse, deleteVersion("f", n)); !strings.Contains(r.GetMessage(), "live") {
			t.Fatalf("the refusal doesn't name the alias: %v", r)
		}
	}
	m.refused(conflict, updateAlias(&statev1.UpdateAlias{Function: "f", Name: "live", ExpectedRevision: 1}))
	m.refused(noAlias, updateAlias(&statev1.UpdateAlias{Function: "f", Name: "dead"}))
	m.refused(noVersion, updateAlias(&statev1.UpdateAlias{Function: "f", Name: "live", Version: "9"}))
	m.refused(invalid, updateAlias(&statev1.UpdateAlias{Function: "f", Name: "live", Replace: []string{"name"}}))
	m.refused(invalid, updateAlias(&statev1.UpdateAlias{Function: "f", Name: "live", Version: "2"}))
	b := m.ok(updateAlias(&statev1.UpdateAlias{
		Function: "f", Name: "live", Version: "2", Replace: []string{"weights", "description"}, Description: "d",
		ExpectedRevision: a.GetMeta().GetRevision(),
	})).GetAlias()
	if b.GetVersion() != "2" || len(b.GetWeights()) != 0 || b.GetDescription() != "d" || b.GetMeta().GetRevision() != m.index {
		t.Fatalf("updated alias %v", b)
	}
	m.ok(deleteVersion("f", 1))

	m.refused(noAlias, setURL("f", &mayflyv1.FunctionUrl{Qualifier: "dead"}))
	m.refused(noVersion, setURL("f", &mayflyv1.FunctionUrl{Qualifier: "1"}))
	m.ok(setURL("f", &mayflyv1.FunctionUrl{Qualifier: "3"}))
	m.refused(inUse, deleteVersion("f", 3))
	m.ok(setURL("f", &mayflyv1.FunctionUrl{Qualifier: "live"}))
	m.refused(inUse, deleteAlias("f", "live", 0))
	m.ok(setURL("f", nil))
	m.refused(conflict, deleteAlias("f", "live", 1))
	m.ok(deleteAlias("f", "live", b.GetMeta().GetRevision()))
	m.refused(noAlias, deleteAlias("f", "live", 0))
	m.ok(deleteVersion("f", 2))
}

func TestReservedConcurrency(t *testing.T) {
	m := ready(t)
	m.ok(createFunction("default", "a", 1))
	m.ok(createFunction("default", "b", 1))
	m.refused(overQuota, reserve("a", proto.Int32(901)))
	m.ok(reserve("a", proto.Int32(900)))
	m.refused(overQuota, reserve("b", proto.Int32(1)))
	m.ok(reserve("b", proto.Int32(0)))
	m.ok(reserve("a", proto.Int32(500)))
	m.ok(reserve("b", proto.Int32(400)))
	m.refused(invalid, reserve("b", proto.Int32(-1)))
	m.refused(overQuota, updateNamespace("default", &mayflyv1.Quotas{Concurrency: 999}, 0))
	m.ok(updateNamespace("default", &mayflyv1.Quotas{Concurrency: 1001}, 0))
	m.ok(reserve("a", nil))
	m.ok(reserve("b", nil))
	// Of a small quota everything may be reserved.
	m.ok(updateNamespace("default", &mayflyv1.Quotas{Concurrency: 199}, 0))
	m.ok(reserve("a", proto.Int32(199)))
	m.refused(overQuota, reserve("b", proto.Int32(1)))
	m.ok(deleteFunction("a", 0))
	if u := m.state.View().Usage("default"); u.ReservedConcurrency != 0 {
		t.Fatalf("usage %+v", u)
	}
	c := createFunction("default", "c", 1)
	c.GetCreateFunction().GetFunction().ReservedConcurrency = proto.Int32(200)
	m.refused(overQuota, c)
}

func TestAccessKeys(t *testing.T) {
	m := ready(t)
	k := m.ok(createKey("AKIA1", "default", developer)).GetAccessKey()
	m.ok(createKey("AKIA2", "*", mayflyv1.Role_ROLE_ADMIN))
	m.refused(exists, createKey("AKIA1", "default", developer))
	m.refused(noNamespace, createKey("AKIA3", "nowhere", developer))
	m.refused(invalid, createKey("AKIA3", "default", mayflyv1.Role_ROLE_UNSPECIFIED))
	m.refused(badName, createKey("", "default", developer))
	m.refused(conflict, updateKey(&statev1.UpdateAccessKey{Id: "AKIA1", ExpectedRevision: 1}))
	u := m.ok(updateKey(&statev1.UpdateAccessKey{Id: "AKIA1", Disabled: new(true), Description: new("d"), ExpectedRevision: k.GetMeta().GetRevision()})).GetAccessKey()
	if !u.GetDisabled() || u.GetDescription() != "d" || u.GetRole() != developer || u.GetMeta().GetRevision() != m.index {
		t.Fatalf("updated key %v", u)
	}
	u = m.ok(updateKey(&statev1.UpdateAccessKey{Id: "AKIA1", Role: mayflyv1.Role_ROLE_READER})).GetAccessKey()
	if !u.GetDisabled() || u.GetRole() != mayflyv1.Role_ROLE_READER {
		t.Fatalf("updated key %v", u)
	}
	if r, ok := m.state.View().AccessKey("AKIA1"); !ok || string(r.GetSealedSecret()) != "sealed" {
		t.Fatalf("stored key %v", r)
	}
	ids := func(ns, after string) (ids []string) {
		for k := range m.state.View().AccessKeys(ns, after) {
			ids = append(ids, k.GetAccessKey().GetId())
		}
		return ids
	}
	if a, b, c := ids("", ""), ids("default", ""), ids("", "AKIA1"); !slices.Equal(a, []string{"AKIA1", "AKIA2"}) || !slices.Equal(b, a[:1]) || !slices.Equal(c, a[1:]) {
		t.Fatalf("keys %v, %v, %v", a, b, c)
	}
	m.ok(deleteKey("AKIA1"))
	m.refused(noKey, deleteKey("AKIA1"))
	m.refused(noKey, updateKey(&statev1.UpdateAccessKey{Id: "AKIA1"}))
}

func TestNodes(t *testing.T) {
	m := ready(t)
	n := m.ok(putNode("id1", "a")).GetNode()
	if n.GetSandboxes() != 0 || n.GetState() != 0 || !n.GetAgent() {
		t.Fatalf("observed fields were stored: %v", n)
	}
	m.refused(exists, putNode("id2", "a"))
	m.refused(badName, putNode("", "b"))
	m.refused(badName, putNode("id3", ""))
	m.ok(putNode("id1", "b"))
	m.ok(putNode("id2", "a"))
	v := m.state.View()
	if x, ok := v.NodeByName("b"); !ok || x.GetId() != "id1" || x.GetMeta().GetRevision() == n.GetMeta().GetRevision() {
		t.Fatalf("renamed node %v", x)
	}
	if x, ok := v.Node("id2"); !ok || x.GetName() != "a" {
		t.Fatalf("node %v", x)
	}
	m.ok(deleteNode("id1"))
	m.refused(noNode, deleteNode("id1"))
	if _, ok := m.state.View().NodeByName("b"); ok {
		t.Fatal("a deleted node keeps its name")
	}
}

func TestSettings(t *testing.T) {
	m := ready(t)
	s := m.state.View().Settings()
	m.refused(conflict, updateSettings(&mayflyv1.Settings{UrlDomain: "x"}, 99))
	got := m.ok(updateSettings(&mayflyv1.Settings{Region: "eu-1"}, s.GetMeta().GetRevision())).GetSettings()
	if got.GetRegion() != "eu-1" || got.GetUrlDomain() != "localhost" || got.GetMeta().GetRevision() != m.index {
		t.Fatalf("settings %v", got)
	}
	if f := m.ok(createFunction("default", "f", 1)).GetFunction(); !strings.Contains(f.GetArn(), ":eu-1:") {
		t.Fatalf("arn %s", f.GetArn())
	}
	m.refused(inUse, updateSettings(&mayflyv1.Settings{Region: "eu-2"}, 0))
	m.ok(updateSettings(&mayflyv1.Settings{UrlDomain: "example.org"}, 0))
}

func TestPages(t *testing.T) {
	m := ready(t)
	m.ok(createNamespace("zoo", "000000000002", nil))
	for _, name := range []string{"b", "a", "a-1", "ab", "c"} {
		m.ok(createFunction("default", name, 1))
	}
	m.ok(createFunction("zoo", "a", 1))
	v := m.state.View()
	names := func(ns, prefix, after string) string {
		var out []string
		seq := v.Functions(ns, after)
		if prefix != "" {
			seq = v.FunctionsWithPrefix(ns, prefix, after)
		}
		for f := range seq {
			out = append(out, f.GetNamespace()[:1]+f.GetName())
		}
		return fmt.Sprint(out)
	}
	for _, c := range []struct{ ns, prefix, after, want string }{
		{"default", "", "", "[da da-1 dab db dc]"},
		{"default", "", "a", "[da-1 dab db dc]"},
		{"default", "", "aa", "[dab db dc]"},
		{"default", "", "c", "[]"},
		{"default", "a", "", "[da da-1 dab]"},
		{"default", "a", "a", "[da-1 dab]"},
		{"default", "a", "b", "[]"},
		{"default", "b", "a", "[db]"},
		{"", "", "", "[da da-1 dab db dc za]"},
		{"", "", "default/b", "[dc za]"},
		{"", "", "default/zz", "[za]"},
		{"none", "", "", "[]"},
	} {
		if got := names(c.ns, c.prefix, c.after); got != c.want {
			t.Errorf("functions of %q with prefix %q after %q: %s, want %s", c.ns, c.prefix, c.after, got, c.want)
		}
	}
	for range v.Functions("default", "") {
		break
	}
}
