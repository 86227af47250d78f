package auth

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Policy is the role that each RPC needs, by full method name ("/mayfly.v1.FunctionService/GetFunction").
type Policy map[string]mayflyv1.Role

// PolicyOf reads the option required_role of all methods of files, which is protoregistry.GlobalFiles in production. Methods without it are left out, and so refused to everybody.
func PolicyOf(files *protoregistry.Files) Policy {
	policy := Policy{}
	files.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			policy.add(file.Services().Get(i))
		}
		return true
	})
	return policy
}

func (p Policy) add(service protoreflect.ServiceDescriptor) {
	for i := range service.Methods().Len() {
		method := service.Methods().Get(i)
		options := method.Options()
		if !proto.HasExtension(options, mayflyv1.E_RequiredRole) {
			continue
		}
		if role, ok := proto.GetExtension(options, mayflyv1.E_RequiredRole).(mayflyv1.Role); ok {
			p[fmt.Sprintf("/%s/%s", service.FullName(), method.Name())] = role
		}
	}
}

// Check refuses a principal whose role is too small for a method, or any for a method without a role.
func (p Policy) Check(principal Principal, fullMethod string) error {
	need, ok := p[fullMethod]
	if !ok {
		return denied("%s may be called by nobody", fullMethod)
	}
	if !principal.May(need) {
		return denied("%s needs the role %s; access key %s has %s", fullMethod, roleName(need), principal.KeyID, roleName(principal.Role))
	}
	return nil
}

func roleName(role mayflyv1.Role) string {
	const prefix = "ROLE_"
	if name := role.String(); len(name) > len(prefix) {
		return name[len(prefix):]
	}
	return role.String()
}
