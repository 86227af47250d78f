package cli_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func meta(revision uint64) *mayflyv1.Meta {
	return &mayflyv1.Meta{Revision: revision, CreatedAt: timestamppb.New(testNow.Add(-time.Hour)), UpdatedAt: timestamppb.New(testNow)}
}

func helloFunction() *mayflyv1.Function {
	return &mayflyv1.Function{
		Meta: meta(7), Namespace: "default", Name: "hello", Arn: "arn:aws:lambda:us-east-1:000000000001:function:hello",
		Configuration: &mayflyv1.FunctionConfiguration{
			Runtime: "python3.11", Handler: "hello.handler", MemoryMb: 128, Timeout: durationpb.New(3 * time.Second),
			Environment: map[string]string{"B": "2", "A": "1"}, EphemeralStorageMb: 512,
		},
		Code:  &mayflyv1.Code{Digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", SizeBytes: 2048},
		State: mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE, LastVersion: 2, CodeRevision: 5,
		Url:  &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE, InvokeMode: mayflyv1.InvokeMode_INVOKE_MODE_BUFFERED},
		Tags: map[string]string{"team": "x"},
	}
}

func TestFunctionCommands(t *testing.T) {
	b := newBench(t)
	on(b.api, mayflyv1.FunctionService_ListFunctions_FullMethodName, func(q *mayflyv1.ListFunctionsRequest) (*mayflyv1.ListFunctionsResponse, error) {
		second := helloFunction()
		second.Name, second.State = "other", mayflyv1.FunctionState_FUNCTION_STATE_PENDING
		if q.GetPageToken() == "" {
			return &mayflyv1.ListFunctionsResponse{Functions: []*mayflyv1.Function{helloFunction()}, NextPageToken: "next"}, nil
		}
		return &mayflyv1.ListFunctionsResponse{Functions: []*mayflyv1.Function{second}}, nil
	})
	on(b.api, mayflyv1.FunctionService_GetFunction_FullMethodName, func(q *mayflyv1.GetFunctionRequest) (*mayflyv1.GetFunctionResponse, error) {
		if q.GetName() != "hello" {
			return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND, "function %s does not exist", q.GetName())
		}
		return &mayflyv1.GetFunctionResponse{Function: helloFunction(), Url: "http://127.0.0.1:7080/fn/hello/"}, nil
	})
	on(b.api, mayflyv1.FunctionService_UpdateFunctionConfiguration_FullMethodName, func(q *mayflyv1.UpdateFunctionConfigurationRequest) (*mayflyv1.UpdateFunctionConfigurationResponse, error) {
		if q.GetExpectedRevision() == 3 {
			return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_REVISION_CONFLICT, "function hello is at revision 7, not 3: read it again")
		}
		return &mayflyv1.UpdateFunctionConfigurationResponse{Function: helloFunction()}, nil
	})
	on(b.api, mayflyv1.FunctionService_DeleteFunction_FullMethodName, func(*mayflyv1.DeleteFunctionRequest) (*mayflyv1.DeleteFunctionResponse, error) {
		return &mayflyv1.DeleteFunctionResponse{}, nil
	})
	on(b.api, mayflyv1.FunctionService_PutFunctionConcurrency_FullMethodName, func(*mayflyv1.PutFunctionConcurrencyRequest) (*mayflyv1.PutFunctionConcurrencyResponse, error) {
		return &mayflyv1.PutFunctionConcurrencyResponse{Function: helloFunction()}, nil
	})
	on(b.api, mayflyv1.FunctionService_DeleteFunctionConcurrency_FullMethodName, func(*mayflyv1.DeleteFunctionConcurrencyRequest) (*mayflyv1.DeleteFunctionConcurrencyResponse, error) {
		return &mayflyv1.DeleteFunctionConcurrencyResponse{Function: helloFunction()}, nil
	})
	on(b.api, mayflyv1.FunctionService_PutFunctionUrl_FullMethodName, func(*mayflyv1.PutFunctionUrlRequest) (*mayflyv1.PutFunctionUrlResponse, error) {
		return &mayflyv1.PutFunctionUrlResponse{Function: helloFunction(), Url: "http://127.0.0.1:7080/fn/hello/"}, nil
	})
	on(b.api, mayflyv1.FunctionService_DeleteFunctionUrl_FullMethodName, func(*mayflyv1.DeleteFunctionUrlRequest) (*mayflyv1.DeleteFunctionUrlResponse, error) {
		return &mayflyv1.DeleteFunctionUrlResponse{Function: helloFunction()}, nil
	})
	b.transcript("function", [][]string{
		{"function", "list"},
		{"function", "list", "--quiet", "--prefix", "h", "--tag", "team=x", "--namespace", "shop"},
		{"function", "get", "hello"},
		{"function", "get", "hello", "--output", "json"},
		{"function", "get", "hello", "--output", "yaml"},
		{"function", "get", "nope"},
		{"function", "get"},
		{"function", "get", "a", "b"},
		{"function", "get", "hello", "--output", "xml"},
		{"function", "update", "hello", "--memory", "512", "--timeout", "30s", "--env", "A=1", "--clear", "tags"},
		{"function", "update", "hello", "--memory", "512", "--expected-revision", "3"},
		{"function", "update", "hello", "--egress", "none"},
		{"function", "update", "hello", "--egress", "some"},
		{"function", "update", "hello"},
		{"function", "update", "hello", "--clear", "code"},
		{"function", "concurrency", "set", "hello", "5"},
		{"function", "concurrency", "set", "hello", "-1"},
		{"function", "concurrency", "delete", "hello"},
		{"function", "url", "set", "hello", "--auth", "iam", "--stream", "--cors-origin", "*", "--cors-max-age", "1m"},
		{"function", "url", "set", "hello", "--auth", "basic"},
		{"function", "url", "get", "hello"},
		{"function", "url", "delete", "hello"},
		{"function", "delete", "hello", "--expected-revision", "7"},
		{"function", "frobnicate"},
	}...)
}

func TestVersionAndAliasCommands(t *testing.T) {
	b := newBench(t)
	version := &mayflyv1.Version{
		Meta: meta(9), Namespace: "default", Function: "hello", Number: 2, Arn: "arn:aws:lambda:us-east-1:000000000001:function:hello:2",
		Description: "second", Configuration: helloFunction().GetConfiguration(), Code: helloFunction().GetCode(),
	}
	alias := &mayflyv1.Alias{
		Meta: meta(11), Namespace: "default", Function: "hello", Name: "live", Version: "1",
		Arn: "arn:aws:lambda:us-east-1:000000000001:function:hello:live", Weights: map[string]float64{"2": 0.25},
	}
	on(b.api, mayflyv1.VersionService_ListVersions_FullMethodName, func(*mayflyv1.ListVersionsRequest) (*mayflyv1.ListVersionsResponse, error) {
		return &mayflyv1.ListVersionsResponse{Versions: []*mayflyv1.Version{version}}, nil
	})
	on(b.api, mayflyv1.VersionService_GetVersion_FullMethodName, func(*mayflyv1.GetVersionRequest) (*mayflyv1.GetVersionResponse, error) {
		return &mayflyv1.GetVersionResponse{Version: version}, nil
	})
	on(b.api, mayflyv1.VersionService_PublishVersion_FullMethodName, func(*mayflyv1.PublishVersionRequest) (*mayflyv1.PublishVersionResponse, error) {
		return &mayflyv1.PublishVersionResponse{Version: version}, nil
	})
	on(b.api, mayflyv1.VersionService_DeleteVersion_FullMethodName, func(*mayflyv1.DeleteVersionRequest) (*mayflyv1.DeleteVersionResponse, error) {
		return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "alias live names version 2: point it elsewhere first")
	})
	on(b.api, mayflyv1.AliasService_ListAliases_FullMethodName, func(*mayflyv1.ListAliasesRequest) (*mayflyv1.ListAliasesResponse, error) {
		return &mayflyv1.ListAliasesResponse{Aliases: []*mayflyv1.Alias{alias}}, nil
	})
	on(b.api, mayflyv1.AliasService_GetAlias_FullMethodName, func(*mayflyv1.GetAliasRequest) (*mayflyv1.GetAliasResponse, error) {
		return &mayflyv1.GetAliasResponse{Alias: alias}, nil
	})
	on(b.api, mayflyv1.AliasService_CreateAlias_FullMethodName, func(*mayflyv1.CreateAliasRequest) (*mayflyv1.CreateAliasResponse, error) {
		return &mayflyv1.CreateAliasResponse{Alias: alias}, nil
	})
	on(b.api, mayflyv1.AliasService_UpdateAlias_FullMethodName, func(*mayflyv1.UpdateAliasRequest) (*mayflyv1.UpdateAliasResponse, error) {
		return &mayflyv1.UpdateAliasResponse{Alias: alias}, nil
	})
	on(b.api, mayflyv1.AliasService_DeleteAlias_FullMethodName, func(*mayflyv1.DeleteAliasRequest) (*mayflyv1.DeleteAliasResponse, error) {
		return &mayflyv1.DeleteAliasResponse{}, nil
	})
	b.transcript("version", [][]string{
		{"version"},
		{"--version"},
		{"version", "list", "hello"},
		{"version", "get", "hello", "2"},
		{"version", "get", "hello", "two"},
		{"version", "publish", "hello", "--description", "second"},
		{"version", "delete", "hello", "2"},
		{"alias", "list", "hello"},
		{"alias", "get", "hello", "live"},
		{"alias", "create", "hello", "live", "--version", "1", "--weight", "2=0.25"},
		{"alias", "create", "hello", "live"},
		{"alias", "create", "hello", "live", "--version", "1", "--weight", "2=25"},
		{"alias", "update", "hello", "live", "--version", "2", "--clear-weights"},
		{"alias", "update", "hello", "live", "--clear-weights", "--weight", "2=0.5"},
		{"alias", "update", "hello", "live"},
		{"alias", "delete", "hello", "live"},
	}...)
}

func TestClusterCommands(t *testing.T) {
	b := newBench(t)
	namespace := &mayflyv1.Namespace{
		Meta: meta(3), Name: "shop", AccountId: "000000000002",
		Quotas: &mayflyv1.Quotas{Functions: 10, Concurrency: 100, CodeBytes: 10 << 30},
	}
	key := &mayflyv1.AccessKey{Meta: meta(4), Id: "AKIAXXXXYYYYZZZZ2222", Namespace: "shop", Role: mayflyv1.Role_ROLE_DEVELOPER, Description: "laptop"}
	node := &mayflyv1.Node{
		Meta: meta(2), Id: "6e0cbb1b-8a5e-4a30-8d5a-5a4ad6b0a9ae", Name: "box", Server: true, Agent: true, Leader: true,
		State: mayflyv1.NodeState_NODE_STATE_UP, Capacity: &mayflyv1.NodeResources{MemoryBytes: 8 << 30, MilliCpus: 2000},
		Used: &mayflyv1.NodeResources{MemoryBytes: 128 << 20, MilliCpus: 100}, Sandboxes: 1, Runtimes: []string{"python3.11"},
		MayflyVersion: "1.2.3", LastSeen: timestamppb.New(testNow),
	}
	settings := &mayflyv1.Settings{Meta: meta(1), Region: "us-east-1", UrlDomain: "localhost"}
	on(b.api, mayflyv1.NamespaceService_ListNamespaces_FullMethodName, func(*mayflyv1.ListNamespacesRequest) (*mayflyv1.ListNamespacesResponse, error) {
		return &mayflyv1.ListNamespacesResponse{Namespaces: []*mayflyv1.Namespace{namespace}}, nil
	})
	on(b.api, mayflyv1.NamespaceService_GetNamespace_FullMethodName, func(*mayflyv1.GetNamespaceRequest) (*mayflyv1.GetNamespaceResponse, error) {
		return &mayflyv1.GetNamespaceResponse{Namespace: namespace}, nil
	})
	on(b.api, mayflyv1.NamespaceService_CreateNamespace_FullMethodName, func(*mayflyv1.CreateNamespaceRequest) (*mayflyv1.CreateNamespaceResponse, error) {
		return &mayflyv1.CreateNamespaceResponse{Namespace: namespace}, nil
	})
	on(b.api, mayflyv1.NamespaceService_UpdateNamespace_FullMethodName, func(*mayflyv1.UpdateNamespaceRequest) (*mayflyv1.UpdateNamespaceResponse, error) {
		return &mayflyv1.UpdateNamespaceResponse{Namespace: namespace}, nil
	})
	on(b.api, mayflyv1.NamespaceService_DeleteNamespace_FullMethodName, func(*mayflyv1.DeleteNamespaceRequest) (*mayflyv1.DeleteNamespaceResponse, error) {
		return nil, fault.New(codes.PermissionDenied, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, "DeleteNamespace needs the role ADMIN, the key has DEVELOPER")
	})
	on(b.api, mayflyv1.AccessKeyService_ListAccessKeys_FullMethodName, func(*mayflyv1.ListAccessKeysRequest) (*mayflyv1.ListAccessKeysResponse, error) {
		return &mayflyv1.ListAccessKeysResponse{AccessKeys: []*mayflyv1.AccessKey{key}}, nil
	})
	on(b.api, mayflyv1.AccessKeyService_CreateAccessKey_FullMethodName, func(*mayflyv1.CreateAccessKeyRequest) (*mayflyv1.CreateAccessKeyResponse, error) {
		return &mayflyv1.CreateAccessKeyResponse{AccessKey: key, Secret: "s3cr3t"}, nil
	})
	on(b.api, mayflyv1.AccessKeyService_UpdateAccessKey_FullMethodName, func(*mayflyv1.UpdateAccessKeyRequest) (*mayflyv1.UpdateAccessKeyResponse, error) {
		return &mayflyv1.UpdateAccessKeyResponse{AccessKey: key}, nil
	})
	on(b.api, mayflyv1.AccessKeyService_DeleteAccessKey_FullMethodName, func(*mayflyv1.DeleteAccessKeyRequest) (*mayflyv1.DeleteAccessKeyResponse, error) {
		return &mayflyv1.DeleteAccessKeyResponse{}, nil
	})
	on(b.api, mayflyv1.AccessKeyService_GetCallerIdentity_FullMethodName, func(*mayflyv1.GetCallerIdentityRequest) (*mayflyv1.GetCallerIdentityResponse, error) {
		return &mayflyv1.GetCallerIdentityResponse{AccessKey: key}, nil
	})
	on(b.api, mayflyv1.NodeService_ListNodes_FullMethodName, func(*mayflyv1.ListNodesRequest) (*mayflyv1.ListNodesResponse, error) {
		return &mayflyv1.ListNodesResponse{Nodes: []*mayflyv1.Node{node}}, nil
	})
	on(b.api, mayflyv1.NodeService_GetNode_FullMethodName, func(*mayflyv1.GetNodeRequest) (*mayflyv1.GetNodeResponse, error) {
		return &mayflyv1.GetNodeResponse{Node: node}, nil
	})
	on(b.api, mayflyv1.NodeService_DeleteNode_FullMethodName, func(*mayflyv1.DeleteNodeRequest) (*mayflyv1.DeleteNodeResponse, error) {
		return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "node box is up: stop it first")
	})
	on(b.api, mayflyv1.ClusterService_GetInfo_FullMethodName, func(*mayflyv1.GetInfoRequest) (*mayflyv1.GetInfoResponse, error) {
		return &mayflyv1.GetInfoResponse{MayflyVersion: "1.2.3", ClusterId: "c1", NodeId: "n1", NodeName: "box", HttpUrl: "http://127.0.0.1:7080", Leader: true, AppliedIndex: 42}, nil
	})
	on(b.api, mayflyv1.ClusterService_GetSettings_FullMethodName, func(*mayflyv1.GetSettingsRequest) (*mayflyv1.GetSettingsResponse, error) {
		return &mayflyv1.GetSettingsResponse{Settings: settings}, nil
	})
	on(b.api, mayflyv1.ClusterService_UpdateSettings_FullMethodName, func(*mayflyv1.UpdateSettingsRequest) (*mayflyv1.UpdateSettingsResponse, error) {
		return &mayflyv1.UpdateSettingsResponse{Settings: settings}, nil
	})
	on(b.api, mayflyv1.ClusterService_ListRuntimes_FullMethodName, func(*mayflyv1.ListRuntimesRequest) (*mayflyv1.ListRuntimesResponse, error) {
		return &mayflyv1.ListRuntimesResponse{Runtimes: []*mayflyv1.RuntimeImage{{
			Runtime: "python3.11", Digest: "sha256:0123456789abcdef0123", SizeBytes: 60 << 20, BuiltAt: timestamppb.New(testNow), Nodes: []string{"box"}, Version: "3.11.2",
		}}}, nil
	})
	on(b.api, mayflyv1.ClusterService_RotateRootKey_FullMethodName, func(*mayflyv1.RotateRootKeyRequest) (*mayflyv1.RotateRootKeyResponse, error) {
		return &mayflyv1.RotateRootKeyResponse{RootKeyId: "0123456789abcdef", AccessKeys: 2, Secrets: 3}, nil
	})
	b.transcript("cluster", [][]string{
		{"cluster", "rotate-root-key"},
		{"cluster", "rotate-root-key", "now"},
		{"status"},
		{"status", "--output", "json"},
		{"settings", "get"},
		{"settings", "update", "--region", "eu-west-1"},
		{"settings", "update"},
		{"runtime", "list"},
		{"namespace", "list"},
		{"namespace", "get", "shop"},
		{"namespace", "create", "shop", "--concurrency", "100", "--code", "10GiB"},
		{"namespace", "create", "shop", "--code", "much"},
		{"namespace", "update", "shop"},
		{"namespace", "update", "shop", "--functions", "20"},
		{"namespace", "update", "shop", "--max-egress", "internet"},
		{"namespace", "delete", "shop"},
		{"key", "list"},
		{"key", "create", "--role", "developer", "--namespace", "shop", "--expires-in", "24h", "--save-as", "dev"},
		{"key", "create", "--role", "boss"},
		{"key", "create"},
		{"key", "update", "AKIAXXXXYYYYZZZZ2222", "--disable", "--description", ""},
		{"key", "update", "AKIAXXXXYYYYZZZZ2222"},
		{"key", "delete", "AKIAXXXXYYYYZZZZ2222"},
		{"key", "whoami"},
		{"node", "list"},
		{"node", "get", "box"},
		{"node", "delete", "box"},
		{"context", "list"},
	}...)
}

func TestInvokeCommands(t *testing.T) {
	b := newBench(t)
	on(b.api, mayflyv1.InvocationService_Invoke_FullMethodName, func(q *mayflyv1.InvokeRequest) (*mayflyv1.InvokeResponse, error) {
		r := &mayflyv1.InvokeResponse{Payload: []byte(`{"ok":true}`), ExecutedVersion: "$LATEST", RequestId: "r-1", LogTail: []byte("START\nEND\n")}
		switch q.GetFunction() {
		case "broken", "broken:live":
			r.Payload, r.FunctionError = []byte(`{"errorMessage":"no"}`), "Unhandled"
		case "busy":
			return nil, fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_CONCURRENCY_EXCEEDED, "function busy is at its concurrency of 1: try again later")
		case "null":
			r.Payload = nil
		}
		return r, nil
	})
	onStream(b.api, mayflyv1.InvocationService_InvokeStream_FullMethodName, func(q *mayflyv1.InvokeStreamRequest, s grpc.ServerStream) error {
		for _, chunk := range []string{"one ", "two"} {
			if err := s.SendMsg(&mayflyv1.InvokeStreamResponse{Event: &mayflyv1.InvokeStreamResponse_Chunk{Chunk: []byte(chunk)}}); err != nil {
				return err
			}
		}
		return s.SendMsg(&mayflyv1.InvokeStreamResponse{Event: &mayflyv1.InvokeStreamResponse_Complete{
			Complete: &mayflyv1.InvokeResponse{RequestId: "r-2", FunctionError: q.GetInvoke().GetClientContext()},
		}})
	})
	event := b.file("event.json", `{"from":"file"}`)
	b.transcript("invoke", [][]string{
		{"invoke", "hello"},
		{"invoke", "hello:live", "--payload", `{"a":1}`, "--log"},
		{"invoke", "hello", "--payload", "@" + event, "--qualifier", "2", "--client-context", "{}"},
		{"invoke", "hello", "--payload", "@/does/not/exist"},
		{"invoke", "hello", "--dry-run"},
		{"invoke", "hello", "--output", "json"},
		{"invoke", "null"},
		{"invoke", "broken"},
		{"invoke", "broken", "--quiet"},
		{"invoke", "broken:live", "--fail-on-function-error"},
		{"invoke", "busy"},
		{"invoke", "hello", "--stream"},
		{"invoke", "hello", "--stream", "--client-context", "Unhandled", "--fail-on-function-error"},
		{"invoke", "hello", "--stream", "--dry-run"},
		{"invoke"},
	}...)
}

func TestInvokeReadsStdin(t *testing.T) {
	b := newBench(t)
	on(b.api, mayflyv1.InvocationService_Invoke_FullMethodName, func(q *mayflyv1.InvokeRequest) (*mayflyv1.InvokeResponse, error) {
		return &mayflyv1.InvokeResponse{Payload: q.GetPayload()}, nil
	})
	b.stdin("{\"from\":\"stdin\"}\n")
	if o := b.run("invoke", "hello", "--payload", "-"); o.stdout != "{\"from\":\"stdin\"}\n" || o.code != 0 {
		t.Errorf("got %+v", o)
	}
}

func TestLogsCommand(t *testing.T) {
	b := newBench(t)
	line := func(text string) *mayflyv1.LogLine {
		return &mayflyv1.LogLine{Time: timestamppb.New(testNow), RequestId: "r-1", LogStream: "s", Version: "$LATEST", Kind: mayflyv1.LogKind_LOG_KIND_FUNCTION, Text: text}
	}
	onStream(b.api, mayflyv1.LogService_ReadLogs_FullMethodName, func(q *mayflyv1.ReadLogsRequest, s grpc.ServerStream) error {
		if err := s.SendMsg(&mayflyv1.ReadLogsResponse{Lines: []*mayflyv1.LogLine{line("one"), line("two: x")}}); err != nil {
			return err
		}
		return s.SendMsg(&mayflyv1.ReadLogsResponse{Lines: []*mayflyv1.LogLine{line("three")}})
	})
	b.transcript("logs", [][]string{
		{"logs", "hello"},
		{"logs", "hello", "--since", "10m", "--until", "2026-01-02T03:00:00Z", "--request-id", "r-1", "--filter", "x", "--limit", "5"},
		{"logs", "hello", "--output", "json"},
		{"logs", "hello", "--output", "yaml"},
		{"logs", "hello", "--quiet"},
		{"logs", "hello", "--since", "yesterday"},
	}...)
}
