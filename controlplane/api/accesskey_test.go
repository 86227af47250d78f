package api_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	roleReader    = mayflyv1.Role_ROLE_READER
	roleInvoker   = mayflyv1.Role_ROLE_INVOKER
	roleDeveloper = mayflyv1.Role_ROLE_DEVELOPER
	roleAdmin     = mayflyv1.Role_ROLE_ADMIN
	noKey         = mayflyv1.ErrorReason_ERROR_REASON_ACCESS_KEY_NOT_FOUND
)

func stamp(at time.Time) *timestamppb.Timestamp { return timestamppb.New(at) }

func TestNewKeysWork(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	response, err := b.admin.key.CreateAccessKey(testContext(t), &mayflyv1.CreateAccessKeyRequest{Namespace: "team", Role: roleReader, Description: "CI", ExpiresAt: stamp(time.Now().Add(time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	id := response.GetAccessKey().GetId()
	c := b.with(id, response.GetSecret())
	who, err := c.key.GetCallerIdentity(testContext(t), &mayflyv1.GetCallerIdentityRequest{})
	if err != nil || who.GetAccessKey().GetId() != id || who.GetAccessKey().GetNamespace() != "team" || who.GetAccessKey().GetDescription() != "CI" {
		t.Fatalf("%v, %v", who, err)
	}
	_, err = c.function.DeleteFunction(testContext(t), &mayflyv1.DeleteFunctionRequest{Name: "f"})
	wantReason(t, "role too small", err, permission, "DEVELOPER", "READER", id)
	_, err = b.with(id, "wrong").function.ListFunctions(testContext(t), &mayflyv1.ListFunctionsRequest{})
	wantReason(t, "wrong secret", err, unauthenticated)

	key := response.GetAccessKey()
	updated, err := b.admin.key.UpdateAccessKey(testContext(t), &mayflyv1.UpdateAccessKeyRequest{Id: id, Role: roleDeveloper, ExpectedRevision: key.GetMeta().GetRevision()})
	if err != nil || updated.GetAccessKey().GetRole() != roleDeveloper || updated.GetAccessKey().GetDescription() != "CI" {
		t.Fatalf("%v, %v", updated, err)
	}
	_, err = c.function.DeleteFunction(testContext(t), &mayflyv1.DeleteFunctionRequest{Name: "f"})
	wantReason(t, "larger role", err, noFunction)
	_, err = b.admin.key.UpdateAccessKey(testContext(t), &mayflyv1.UpdateAccessKeyRequest{Id: id, Disabled: new(true), ExpectedRevision: key.GetMeta().GetRevision()})
	wantReason(t, "stale", err, revision)
	if _, err := b.admin.key.UpdateAccessKey(testContext(t), &mayflyv1.UpdateAccessKeyRequest{Id: id, Disabled: new(true)}); err != nil {
		t.Fatal(err)
	}
	_, err = c.function.ListFunctions(testContext(t), &mayflyv1.ListFunctionsRequest{})
	wantReason(t, "disabled", err, unauthenticated, "disabled")
	if _, err := b.admin.key.DeleteAccessKey(testContext(t), &mayflyv1.DeleteAccessKeyRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	_, err = c.function.ListFunctions(testContext(t), &mayflyv1.ListFunctionsRequest{})
	wantReason(t, "deleted", err, unauthenticated)
	_, err = b.admin.key.DeleteAccessKey(testContext(t), &mayflyv1.DeleteAccessKeyRequest{Id: id})
	wantReason(t, "again", err, noKey, id)
}

func TestCreateAccessKeyRefuses(t *testing.T) {
	b := newBench(t)
	for name, test := range map[string]struct {
		r      *mayflyv1.CreateAccessKeyRequest
		reason mayflyv1.ErrorReason
		word   string
	}{
		"no role":           {&mayflyv1.CreateAccessKeyRequest{}, invalidArgument, "role"},
		"unknown role":      {&mayflyv1.CreateAccessKeyRequest{Role: 9}, invalidArgument, "9"},
		"unknown namespace": {&mayflyv1.CreateAccessKeyRequest{Role: roleReader, Namespace: "nowhere"}, noNamespace, "nowhere"},
		"bad namespace":     {&mayflyv1.CreateAccessKeyRequest{Role: roleReader, Namespace: "A B"}, badName, "A B"},
		"past":              {&mayflyv1.CreateAccessKeyRequest{Role: roleReader, ExpiresAt: stamp(time.Now().Add(-time.Second))}, invalidArgument, "expires_at"},
	} {
		_, err := b.admin.key.CreateAccessKey(testContext(t), test.r)
		wantReason(t, name, err, test.reason, test.word)
	}
}

// TestANamespacesAdmin is an admin of one namespace, and of nothing beside it.
func TestANamespacesAdmin(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	ctx := testContext(t)
	team := b.as(t, roleAdmin, "team")
	made, err := team.key.CreateAccessKey(ctx, &mayflyv1.CreateAccessKeyRequest{Role: roleAdmin})
	if err != nil || made.GetAccessKey().GetNamespace() != "team" {
		t.Fatalf("%v, %v", made, err)
	}
	for name, err := range map[string]error{
		"key for all":           second(team.key.CreateAccessKey(ctx, &mayflyv1.CreateAccessKeyRequest{Role: roleReader, Namespace: "*"})),
		"key for another":       second(team.key.CreateAccessKey(ctx, &mayflyv1.CreateAccessKeyRequest{Role: roleReader, Namespace: "default"})),
		"keys of another":       second(team.key.ListAccessKeys(ctx, &mayflyv1.ListAccessKeysRequest{Namespace: "default"})),
		"new namespace":         second(team.namespace.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: "mine"})),
		"own quotas":            second(team.namespace.UpdateNamespace(ctx, &mayflyv1.UpdateNamespaceRequest{Name: "team", Quotas: &mayflyv1.Quotas{Functions: 1 << 20}})),
		"delete a namespace":    second(team.namespace.DeleteNamespace(ctx, &mayflyv1.DeleteNamespaceRequest{Name: "team"})),
		"another namespace":     second(team.namespace.GetNamespace(ctx, &mayflyv1.GetNamespaceRequest{Name: "default"})),
		"settings":              second(team.cluster.UpdateSettings(ctx, &mayflyv1.UpdateSettingsRequest{Settings: &mayflyv1.Settings{Region: "eu-west-1"}})),
		"enroll":                second(team.node.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{Name: "n", CertificateSigningRequest: []byte("csr")})),
		"delete a node":         second(team.node.DeleteNode(ctx, &mayflyv1.DeleteNodeRequest{Node: "n"})),
		"functions of another":  second(team.function.ListFunctions(ctx, &mayflyv1.ListFunctionsRequest{Namespace: "default"})),
		"of one that isn't":     second(team.function.ListFunctions(ctx, &mayflyv1.ListFunctionsRequest{Namespace: "nowhere"})),
		"invoke in another":     second(team.invoke.Invoke(ctx, &mayflyv1.InvokeRequest{Namespace: "default", Function: "f"})),
		"invoke another by ARN": second(team.invoke.Invoke(ctx, &mayflyv1.InvokeRequest{Function: "000000000000:function:f"})),
	} {
		wantReason(t, name, err, permission)
	}
	wantReason(t, "another's key", second(team.key.UpdateAccessKey(ctx, &mayflyv1.UpdateAccessKeyRequest{Id: b.admin.id, Disabled: new(true)})), noKey)
	wantReason(t, "another's key", second(team.key.DeleteAccessKey(ctx, &mayflyv1.DeleteAccessKeyRequest{Id: b.admin.id})), noKey)
	keys, err := team.key.ListAccessKeys(ctx, &mayflyv1.ListAccessKeysRequest{})
	if err != nil || len(keys.GetAccessKeys()) != 2 {
		t.Errorf("keys %v, %v", keys, err)
	}
	namespaces, err := team.namespace.ListNamespaces(ctx, &mayflyv1.ListNamespacesRequest{})
	if err != nil || len(namespaces.GetNamespaces()) != 1 || namespaces.GetNamespaces()[0].GetName() != "team" {
		t.Errorf("namespaces %v, %v", namespaces, err)
	}
	own, err := team.namespace.GetNamespace(ctx, &mayflyv1.GetNamespaceRequest{})
	if err != nil || own.GetNamespace().GetName() != "team" {
		t.Errorf("own %v, %v", own, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestTheLastAdminKeyStays(t *testing.T) {
	b := newBench(t)
	ctx := testContext(t)
	b.as(t, roleAdmin, "default")
	b.as(t, roleReader, "*")
	for name, err := range map[string]error{
		"delete":  second(b.admin.key.DeleteAccessKey(ctx, &mayflyv1.DeleteAccessKeyRequest{Id: b.admin.id})),
		"disable": second(b.admin.key.UpdateAccessKey(ctx, &mayflyv1.UpdateAccessKeyRequest{Id: b.admin.id, Disabled: new(true)})),
		"demote":  second(b.admin.key.UpdateAccessKey(ctx, &mayflyv1.UpdateAccessKeyRequest{Id: b.admin.id, Role: roleReader})),
	} {
		wantReason(t, name, err, inUse, b.admin.id)
	}
	other := b.as(t, roleAdmin, "*")
	if _, err := other.key.DeleteAccessKey(ctx, &mayflyv1.DeleteAccessKeyRequest{Id: b.admin.id}); err != nil {
		t.Error(err)
	}
}

func TestListAccessKeys(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	for range 4 {
		b.as(t, roleReader, "team")
		b.as(t, roleInvoker, "default")
	}
	for namespace, want := range map[string]int{"": 9, "team": 4, "default": 4, "*": 1} {
		r, n := &mayflyv1.ListAccessKeysRequest{Namespace: namespace, PageSize: 2}, 0
		for {
			page, err := b.admin.key.ListAccessKeys(testContext(t), r)
			if err != nil {
				t.Fatal(err)
			}
			n += len(page.GetAccessKeys())
			if r.PageToken = page.GetNextPageToken(); r.PageToken == "" {
				break
			}
		}
		if n != want {
			t.Errorf("%q: %d keys, want %d", namespace, n, want)
		}
	}
}

// TestRolesAtTheDoor calls a method of each role with a key of each.
func TestRolesAtTheDoor(t *testing.T) {
	b := newBench(t)
	calls := map[mayflyv1.Role]func(c *client) error{
		roleReader: func(c *client) error {
			return second(c.function.ListFunctions(testContext(t), &mayflyv1.ListFunctionsRequest{}))
		},
		roleInvoker: func(c *client) error {
			// A bad request: to be told so, the caller must have been let in.
			return second(c.invoke.Invoke(testContext(t), &mayflyv1.InvokeRequest{}))
		},
		roleDeveloper: func(c *client) error {
			return second(c.function.DeleteFunction(testContext(t), &mayflyv1.DeleteFunctionRequest{}))
		},
		roleAdmin: func(c *client) error {
			return second(c.key.ListAccessKeys(testContext(t), &mayflyv1.ListAccessKeysRequest{}))
		},
	}
	includes := map[mayflyv1.Role][]mayflyv1.Role{
		roleReader: {roleReader}, roleInvoker: {roleInvoker}, roleDeveloper: {roleReader, roleInvoker, roleDeveloper}, roleAdmin: {roleReader, roleInvoker, roleDeveloper, roleAdmin},
	}
	for have, may := range includes {
		c := b.as(t, have, "default")
		allowed := map[mayflyv1.Role]bool{}
		for _, role := range may {
			allowed[role] = true
		}
		for need, call := range calls {
			err := call(c)
			if denied := isReason(err, permission); denied == allowed[need] {
				t.Errorf("%v calls what needs %v: %v", have, need, err)
			}
		}
		if _, err := c.key.GetCallerIdentity(testContext(t), &mayflyv1.GetCallerIdentityRequest{}); err != nil {
			t.Errorf("%v: %v", have, err)
		}
	}
	anonymous := clientOf(b.dial(), "")
	for need, call := range calls {
		wantReason(t, "nobody calls "+need.String(), call(anonymous), unauthenticated)
	}
	garbled := clientOf(b.dial(grpc.WithPerRPCCredentials(bearer("Basic dXNlcjpwYXNz"))), "")
	wantReason(t, "basic", calls[roleReader](garbled), unauthenticated, "Bearer")
}
