package api

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

type functionService struct {
	mayflyv1.UnimplementedFunctionServiceServer
	*core
}

// CreateFunction checks everything before it stores the code: what is refused leaves nothing behind.
func (s *functionService) CreateFunction(ctx context.Context, r *mayflyv1.CreateFunctionRequest) (*mayflyv1.CreateFunctionResponse, error) {
	view := s.View()
	fn, err := newFunction(ctx, view, r)
	if err != nil {
		return nil, err
	}
	switch code := r.GetCode().(type) {
	case *mayflyv1.CreateFunctionRequest_ZipFile:
		fn.Code, err = s.packages.inline(ctx, code.ZipFile)
	case *mayflyv1.CreateFunctionRequest_CodeDigest:
		fn.Code, err = s.packages.stored(ctx, code.CodeDigest)
	default:
		err = noCode()
	}
	if err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_CreateFunction{
		CreateFunction: &statev1.CreateFunction{Function: fn, Publish: r.GetPublish()},
	}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.CreateFunctionResponse{Function: result.GetFunction()}, nil
}

// newFunction is the function of a checked request, but for its code.
func newFunction(ctx context.Context, view View, r *mayflyv1.CreateFunctionRequest) (*mayflyv1.Function, error) {
	ns, err := namespace(ctx, view, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	if err := checkFunctionName("name", r.GetName()); err != nil {
		return nil, err
	}
	configuration, err := completeConfiguration(r.GetConfiguration())
	if err != nil {
		return nil, err
	}
	if err := secretsExist(view, ns.GetName(), configuration); err != nil {
		return nil, err
	}
	if err := checkTags(r.GetTags()); err != nil {
		return nil, err
	}
	url, err := completeURL(r.GetUrl())
	if err != nil {
		return nil, err
	}
	fn := &mayflyv1.Function{
		Namespace: ns.GetName(), Name: r.GetName(), Arn: functionARN(view, ns, r.GetName()),
		Configuration: configuration, State: mayflyv1.FunctionState_FUNCTION_STATE_PENDING, Url: url, Tags: r.GetTags(),
	}
	if _, taken := view.Function(ns.GetName(), r.GetName()); taken {
		return nil, alreadyExists("function %q exists already in namespace %q: update it, or choose another name", r.GetName(), ns.GetName())
	}
	if qualifier := url.GetQualifier(); qualifier != "" {
		// Nothing but $LATEST exists yet.
		return fn, qualifierExists(view, fn, qualifier)
	}
	return fn, nil
}

func noCode() error {
	return invalid("code is missing: give zip_file, or the code_digest of a package stored by UploadCode")
}

// GetFunction reads one function.
func (s *functionService) GetFunction(ctx context.Context, r *mayflyv1.GetFunctionRequest) (*mayflyv1.GetFunctionResponse, error) {
	fn, _, err := function(ctx, s.View(), r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	return &mayflyv1.GetFunctionResponse{Function: fn, Url: s.urlText(fn)}, nil
}

// ListFunctions reads a page of a namespace's functions.
func (s *functionService) ListFunctions(ctx context.Context, r *mayflyv1.ListFunctionsRequest) (*mayflyv1.ListFunctionsResponse, error) {
	view := s.View()
	ns, err := namespace(ctx, view, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	if r.GetRuntime() != "" {
		if err := checkRuntime(r.GetRuntime()); err != nil {
			return nil, err
		}
	}
	if prefix := r.GetNamePrefix(); prefix != "" {
		if err := checkFunctionName("name_prefix", prefix); err != nil {
			return nil, err
		}
	}
	query := []string{"functions", ns.GetName(), r.GetNamePrefix(), r.GetRuntime()}
	for _, key := range sortedKeys(r.GetTags()) {
		query = append(query, key, r.GetTags()[key])
	}
	p, err := parsePage(r.GetPageSize(), r.GetPageToken(), query...)
	if err != nil {
		return nil, err
	}
	functions, next := take(p, view.Functions(ns.GetName(), p.after), (*mayflyv1.Function).GetName, func(fn *mayflyv1.Function) bool { return matches(fn, r) })
	return &mayflyv1.ListFunctionsResponse{Functions: functions, NextPageToken: next}, nil
}

func matches(fn *mayflyv1.Function, r *mayflyv1.ListFunctionsRequest) bool {
	if !strings.HasPrefix(fn.GetName(), r.GetNamePrefix()) || r.GetRuntime() != "" && fn.GetConfiguration().GetRuntime() != r.GetRuntime() {
		return false
	}
	for key, want := range r.GetTags() {
		if got, ok := fn.GetTags()[key]; !ok || got != want {
			return false
		}
	}
	return true
}

// UpdateFunctionCode makes the function Pending again, with new code.
func (s *functionService) UpdateFunctionCode(ctx context.Context, r *mayflyv1.UpdateFunctionCodeRequest) (*mayflyv1.UpdateFunctionCodeResponse, error) {
	view := s.View()
	fn, ns, err := function(ctx, view, r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("function "+fn.GetName(), fn.GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if err := secretsExist(view, ns.GetName(), fn.GetConfiguration()); err != nil {
		return nil, err
	}
	var code *mayflyv1.Code
	switch given := r.GetCode().(type) {
	case *mayflyv1.UpdateFunctionCodeRequest_ZipFile:
		code, err = s.packages.inline(ctx, given.ZipFile)
	case *mayflyv1.UpdateFunctionCodeRequest_CodeDigest:
		code, err = s.packages.stored(ctx, given.CodeDigest)
	default:
		err = noCode()
	}
	if err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_UpdateFunctionCode{UpdateFunctionCode: &statev1.UpdateFunctionCode{
		Namespace: ns.GetName(), Name: r.GetName(), Code: code, ExpectedRevision: r.GetExpectedRevision(), Publish: r.GetPublish(),
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.UpdateFunctionCodeResponse{Function: result.GetFunction()}, nil
}

// UpdateFunctionConfiguration changes the fields that are set, and those that replace names.
func (s *functionService) UpdateFunctionConfiguration(ctx context.Context, r *mayflyv1.UpdateFunctionConfigurationRequest) (*mayflyv1.UpdateFunctionConfigurationResponse, error) {
	fn, ns, err := function(ctx, s.View(), r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("function "+fn.GetName(), fn.GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if err := checkReplace(r); err != nil {
		return nil, err
	}
	if err := checkTags(r.GetTags()); err != nil {
		return nil, err
	}
	if err := checkConfiguration(merged(fn.GetConfiguration(), r.GetConfiguration(), r.GetReplace())); err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_UpdateFunctionConfiguration{
		UpdateFunctionConfiguration: &statev1.UpdateFunctionConfiguration{
			Namespace: ns.GetName(), Name: r.GetName(), Configuration: r.GetConfiguration(), Replace: r.GetReplace(), Tags: r.GetTags(), ExpectedRevision: r.GetExpectedRevision(),
		},
	}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.UpdateFunctionConfigurationResponse{Function: result.GetFunction()}, nil
}

// Fields that an update replaces by name, as their empty values mean something.
const (
	replaceDescription = "description"
	replaceEnvironment = "environment"
	replaceSecretEnv   = "secret_environment"
	replaceSecretFiles = "secret_files"
	replaceTags        = "tags"
)

// checkReplace refuses unknown names, and values that would be ignored as replace doesn't name them.
func checkReplace(r *mayflyv1.UpdateFunctionConfigurationRequest) error {
	given := []struct {
		name string
		set  bool
	}{
		{replaceDescription, r.GetConfiguration().GetDescription() != ""},
		{replaceEnvironment, len(r.GetConfiguration().GetEnvironment()) > 0},
		{replaceSecretEnv, len(r.GetConfiguration().GetSecretEnvironment()) > 0},
		{replaceSecretFiles, len(r.GetConfiguration().GetSecretFiles()) > 0},
		{replaceTags, len(r.GetTags()) > 0},
	}
	for _, name := range r.GetReplace() {
		switch name {
		case replaceDescription, replaceEnvironment, replaceSecretEnv, replaceSecretFiles, replaceTags:
		default:
			return invalid("replace: %.100q is not one of %s, %s, %s, %s and %s", name,
				replaceDescription, replaceEnvironment, replaceSecretEnv, replaceSecretFiles, replaceTags)
		}
	}
	for _, field := range given {
		if field.set && !slices.Contains(r.GetReplace(), field.name) {
			return invalid("%s is given, but replace doesn't name it", field.name)
		}
	}
	return nil
}

// merged is the configuration after an update.
func merged(old, change *mayflyv1.FunctionConfiguration, replace []string) *mayflyv1.FunctionConfiguration {
	c := proto.CloneOf(old)
	if change.GetRuntime() != "" {
		c.Runtime = change.GetRuntime()
	}
	if change.GetHandler() != "" {
		c.Handler = change.GetHandler()
	}
	if change.GetMemoryMb() != 0 {
		c.MemoryMb = change.GetMemoryMb()
	}
	if change.GetTimeout() != nil {
		c.Timeout = change.GetTimeout()
	}
	if change.GetEphemeralStorageMb() != 0 {
		c.EphemeralStorageMb = change.GetEphemeralStorageMb()
	}
	if change.GetEgress() != mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED {
		c.Egress = change.GetEgress()
	}
	if slices.Contains(replace, replaceDescription) {
		c.Description = change.GetDescription()
	}
	if slices.Contains(replace, replaceEnvironment) {
		c.Environment = change.GetEnvironment()
	}
	if slices.Contains(replace, replaceSecretEnv) {
		c.SecretEnvironment = change.GetSecretEnvironment()
	}
	if slices.Contains(replace, replaceSecretFiles) {
		c.SecretFiles = change.GetSecretFiles()
	}
	return c
}

// DeleteFunction deletes a function with its versions and aliases.
func (s *functionService) DeleteFunction(ctx context.Context, r *mayflyv1.DeleteFunctionRequest) (*mayflyv1.DeleteFunctionResponse, error) {
	_, ns, err := function(ctx, s.View(), r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, &statev1.Command{Operation: &statev1.Command_DeleteFunction{
		DeleteFunction: &statev1.DeleteFunction{Namespace: ns.GetName(), Name: r.GetName(), ExpectedRevision: r.GetExpectedRevision()},
	}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.DeleteFunctionResponse{}, nil
}
