package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const noNode = mayflyv1.ErrorReason_ERROR_REASON_NODE_NOT_FOUND

func isReason(err error, reason mayflyv1.ErrorReason) bool { return fault.Is(err, reason) }

func TestNamespaces(t *testing.T) {
	b := newBench(t)
	ctx := testContext(t)
	accounts := map[string]bool{"000000000000": true}
	for i := range 7 {
		response, err := b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: fmt.Sprintf("team-%d", i), Quotas: &mayflyv1.Quotas{Concurrency: 5}})
		if err != nil {
			t.Fatal(err)
		}
		ns := response.GetNamespace()
		if len(ns.GetAccountId()) != 12 || accounts[ns.GetAccountId()] || ns.GetQuotas().GetConcurrency() != 5 || ns.GetQuotas().GetFunctions() != 10000 || ns.GetQuotas().GetCodeBytes() != 75<<30 {
			t.Errorf("namespace %v", ns)
		}
		accounts[ns.GetAccountId()] = true
	}
	var names []string
	r := &mayflyv1.ListNamespacesRequest{PageSize: 3}
	for {
		page, err := b.admin.namespace.ListNamespaces(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		for _, ns := range page.GetNamespaces() {
			names = append(names, ns.GetName())
		}
		if r.PageToken = page.GetNextPageToken(); r.PageToken == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "default team-0 team-1 team-2 team-3 team-4 team-5 team-6" {
		t.Errorf("names %s", got)
	}
	got, err := b.admin.namespace.UpdateNamespace(ctx, &mayflyv1.UpdateNamespaceRequest{Name: "team-1", Quotas: &mayflyv1.Quotas{Functions: 7}})
	if err != nil || got.GetNamespace().GetQuotas().GetFunctions() != 7 || got.GetNamespace().GetQuotas().GetConcurrency() != 5 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := b.admin.function.CreateFunction(ctx, inNamespace(createRequest(t, "f"), "team-1")); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		err    error
		reason mayflyv1.ErrorReason
	}{
		"taken":             {second(b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: "team-1"})), exists},
		"star":              {second(b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: "*"})), badName},
		"empty":             {second(b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{})), badName},
		"upper case":        {second(b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: "Team"})), badName},
		"dash first":        {second(b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: "-team"})), badName},
		"long":              {second(b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: strings.Repeat("x", 64)})), badName},
		"quota":             {second(b.admin.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: "x", Quotas: &mayflyv1.Quotas{Functions: -1}})), invalidArgument},
		"update quota":      {second(b.admin.namespace.UpdateNamespace(ctx, &mayflyv1.UpdateNamespaceRequest{Name: "team-1", Quotas: &mayflyv1.Quotas{CodeBytes: -1}})), invalidArgument},
		"update stale":      {second(b.admin.namespace.UpdateNamespace(ctx, &mayflyv1.UpdateNamespaceRequest{Name: "team-1", ExpectedRevision: 1})), revision},
		"update unknown":    {second(b.admin.namespace.UpdateNamespace(ctx, &mayflyv1.UpdateNamespaceRequest{Name: "nowhere"})), noNamespace},
		"update unnamed":    {second(b.admin.namespace.UpdateNamespace(ctx, &mayflyv1.UpdateNamespaceRequest{})), badName},
		"get unknown":       {second(b.admin.namespace.GetNamespace(ctx, &mayflyv1.GetNamespaceRequest{Name: "nowhere"})), noNamespace},
		"delete default":    {second(b.admin.namespace.DeleteNamespace(ctx, &mayflyv1.DeleteNamespaceRequest{Name: "default"})), inUse},
		"delete unnamed":    {second(b.admin.namespace.DeleteNamespace(ctx, &mayflyv1.DeleteNamespaceRequest{})), badName},
		"delete one in use": {second(b.admin.namespace.DeleteNamespace(ctx, &mayflyv1.DeleteNamespaceRequest{Name: "team-1"})), inUse},
	} {
		wantReason(t, name, test.err, test.reason)
	}
	if _, err := b.admin.namespace.DeleteNamespace(ctx, &mayflyv1.DeleteNamespaceRequest{Name: "team-2"}); err != nil {
		t.Error(err)
	}
}

func inNamespace(r *mayflyv1.CreateFunctionRequest, namespace string) *mayflyv1.CreateFunctionRequest {
	r.Namespace = namespace
	return r
}

func TestNamespacesAreApart(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	team := b.as(t, roleDeveloper, "team")
	b.admin.create(t, "f")
	team.create(t, "f")
	b.admin.create(t, "only-default")
	list, err := team.function.ListFunctions(testContext(t), &mayflyv1.ListFunctionsRequest{})
	if err != nil || len(list.GetFunctions()) != 1 || list.GetFunctions()[0].GetArn() != "arn:aws:lambda:us-east-1:123456789012:function:f" {
		t.Errorf("%v, %v", list, err)
	}
	_, err = team.function.GetFunction(testContext(t), &mayflyv1.GetFunctionRequest{Name: "only-default"})
	wantReason(t, "another's function", err, noFunction, "team")
	all, err := b.admin.function.ListFunctions(testContext(t), &mayflyv1.ListFunctionsRequest{Namespace: "team"})
	if err != nil || len(all.GetFunctions()) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestNodes(t *testing.T) {
	b := newBench(t)
	ctx := testContext(t)
	b.state.nodes["self"] = &mayflyv1.Node{Meta: &mayflyv1.Meta{Revision: 1}, Id: "self", Name: "server-1", Server: true, Agent: true}
	b.fleet.nodes = []*mayflyv1.Node{{Id: "self", Name: "server-1", Agent: true, State: mayflyv1.NodeState_NODE_STATE_UP, Sandboxes: 3}}
	response, err := b.admin.node.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{Name: "worker-1", CertificateSigningRequest: []byte("csr")})
	if err != nil || string(response.GetCertificate()) != "certificate of worker-1" || string(response.GetCaCertificate()) != "CA" || response.GetNodeId() != "id-of-worker-1" {
		t.Fatalf("%v, %v", response, err)
	}
	list, err := b.admin.node.ListNodes(ctx, &mayflyv1.ListNodesRequest{})
	if err != nil || len(list.GetNodes()) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	server, worker := list.GetNodes()[0], list.GetNodes()[1]
	if !server.GetServer() || server.GetSandboxes() != 3 || server.GetState() != mayflyv1.NodeState_NODE_STATE_UP || server.GetMeta().GetRevision() == 0 {
		t.Errorf("server %v", server)
	}
	if worker.GetName() != "worker-1" || worker.GetState() != mayflyv1.NodeState_NODE_STATE_DOWN {
		t.Errorf("worker %v", worker)
	}
	for _, key := range []string{"worker-1", "id-of-worker-1"} {
		if got, err := b.admin.node.GetNode(ctx, &mayflyv1.GetNodeRequest{Node: key}); err != nil || got.GetNode().GetId() != "id-of-worker-1" {
			t.Errorf("%s: %v, %v", key, got, err)
		}
	}
	// Enrolling again, as after a lost disk, keeps the id.
	b.state.nodes["other-id"] = &mayflyv1.Node{Id: "other-id", Name: "worker-2", Agent: true}
	again, err := b.admin.node.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{Name: "worker-2", CertificateSigningRequest: []byte("csr")})
	if err != nil || again.GetNodeId() != "other-id" {
		t.Errorf("%v, %v", again, err)
	}
	before := b.proposals()
	for name, test := range map[string]struct {
		err    error
		reason mayflyv1.ErrorReason
	}{
		"unknown":        {second(b.admin.node.GetNode(ctx, &mayflyv1.GetNodeRequest{Node: "x"})), noNode},
		"empty":          {second(b.admin.node.GetNode(ctx, &mayflyv1.GetNodeRequest{})), noNode},
		"delete unknown": {second(b.admin.node.DeleteNode(ctx, &mayflyv1.DeleteNodeRequest{Node: "x"})), noNode},
		"delete up":      {second(b.admin.node.DeleteNode(ctx, &mayflyv1.DeleteNodeRequest{Node: "server-1"})), inUse},
		"enroll unnamed": {second(b.admin.node.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{CertificateSigningRequest: []byte("csr")})), badName},
		"enroll server":  {second(b.admin.node.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{Name: "server-1", CertificateSigningRequest: []byte("csr")})), exists},
		"enroll bad CSR": {second(b.admin.node.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{Name: "n"})), invalidArgument},
	} {
		wantReason(t, name, test.err, test.reason)
	}
	if b.proposals() != before {
		t.Error("a refused call was proposed")
	}
	if _, err := b.admin.node.DeleteNode(ctx, &mayflyv1.DeleteNodeRequest{Node: "worker-1"}); err != nil {
		t.Error(err)
	}
}

func TestCluster(t *testing.T) {
	b := newBench(t)
	ctx := testContext(t)
	info, err := b.admin.cluster.GetInfo(ctx, &mayflyv1.GetInfoRequest{})
	if err != nil || info.GetMayflyVersion() != "1.2.3" || info.GetClusterId() != "cluster-1" || info.GetNodeId() != "self" || info.GetHttpUrl() != "http://127.0.0.1:7080" || !info.GetLeader() || info.GetAppliedIndex() == 0 {
		t.Errorf("%v, %v", info, err)
	}
	b.fleet.runtimes = []*mayflyv1.RuntimeImage{{Runtime: "python3.11", Nodes: []string{"server-1"}}}
	runtimes, err := b.admin.cluster.ListRuntimes(ctx, &mayflyv1.ListRuntimesRequest{})
	if err != nil || len(runtimes.GetRuntimes()) != 1 {
		t.Errorf("%v, %v", runtimes, err)
	}
	updated, err := b.admin.cluster.UpdateSettings(ctx, &mayflyv1.UpdateSettingsRequest{Settings: &mayflyv1.Settings{Region: "eu-west-1"}, ExpectedRevision: 1})
	if err != nil || updated.GetSettings().GetRegion() != "eu-west-1" || updated.GetSettings().GetUrlDomain() != "localhost" {
		t.Errorf("%v, %v", updated, err)
	}
	settings, err := b.admin.cluster.GetSettings(ctx, &mayflyv1.GetSettingsRequest{})
	if err != nil || settings.GetSettings().GetRegion() != "eu-west-1" {
		t.Errorf("%v, %v", settings, err)
	}
	for name, test := range map[string]struct {
		r      *mayflyv1.UpdateSettingsRequest
		reason mayflyv1.ErrorReason
		word   string
	}{
		"stale":  {&mayflyv1.UpdateSettingsRequest{Settings: &mayflyv1.Settings{Region: "a"}, ExpectedRevision: 1}, revision, "settings"},
		"region": {&mayflyv1.UpdateSettingsRequest{Settings: &mayflyv1.Settings{Region: "EU West"}}, invalidArgument, "EU West"},
		"domain": {&mayflyv1.UpdateSettingsRequest{Settings: &mayflyv1.Settings{UrlDomain: "a..b"}}, invalidArgument, "a..b"},
		"port":   {&mayflyv1.UpdateSettingsRequest{Settings: &mayflyv1.Settings{UrlDomain: "a.b:80"}}, invalidArgument, "a.b:80"},
		"long":   {&mayflyv1.UpdateSettingsRequest{Settings: &mayflyv1.Settings{UrlDomain: strings.Repeat("abc.", 60) + "de"}}, invalidArgument, "abc"},
	} {
		_, err := b.admin.cluster.UpdateSettings(ctx, test.r)
		wantReason(t, name, err, test.reason, test.word)
	}
}
