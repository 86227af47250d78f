package api

import (
	"context"
	"strconv"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

type versionService struct {
	mayflyv1.UnimplementedVersionServiceServer
	*core
}

// PublishVersion freezes code and configuration.
func (s *versionService) PublishVersion(ctx context.Context, r *mayflyv1.PublishVersionRequest) (*mayflyv1.PublishVersionResponse, error) {
	fn, ns, err := function(ctx, s.View(), r.GetNamespace(), "function", r.GetFunction())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("function "+fn.GetName(), fn.GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if err := checkDescription(r.GetDescription()); err != nil {
		return nil, err
	}
	if r.GetCodeDigest() != "" {
		if err := checkDigest("code_digest", r.GetCodeDigest()); err != nil {
			return nil, err
		}
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_PublishVersion{PublishVersion: &statev1.PublishVersion{
		Namespace: ns.GetName(), Function: r.GetFunction(), Description: r.GetDescription(), CodeDigest: r.GetCodeDigest(), ExpectedRevision: r.GetExpectedRevision(),
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.PublishVersionResponse{Version: result.GetVersion()}, nil
}

// GetVersion reads one version.
func (s *versionService) GetVersion(ctx context.Context, r *mayflyv1.GetVersionRequest) (*mayflyv1.GetVersionResponse, error) {
	version, err := s.version(ctx, r.GetNamespace(), r.GetFunction(), r.GetNumber())
	if err != nil {
		return nil, err
	}
	return &mayflyv1.GetVersionResponse{Version: version}, nil
}

func (s *versionService) version(ctx context.Context, requested, name string, number int64) (*mayflyv1.Version, error) {
	view := s.View()
	fn, ns, err := function(ctx, view, requested, "function", name)
	if err != nil {
		return nil, err
	}
	if number < 1 {
		return nil, invalid("number %d is not the number of a version, which begin with 1", number)
	}
	version, ok := view.Version(ns.GetName(), name, number)
	if !ok {
		return nil, versionNotFound(fn, number)
	}
	return version, nil
}

// ListVersions reads a page of a function's versions.
func (s *versionService) ListVersions(ctx context.Context, r *mayflyv1.ListVersionsRequest) (*mayflyv1.ListVersionsResponse, error) {
	view := s.View()
	_, ns, err := function(ctx, view, r.GetNamespace(), "function", r.GetFunction())
	if err != nil {
		return nil, err
	}
	p, err := parsePage(r.GetPageSize(), r.GetPageToken(), "versions", ns.GetName(), r.GetFunction())
	if err != nil {
		return nil, err
	}
	after, err := numberAfter(p)
	if err != nil {
		return nil, err
	}
	versions, next := take(p, view.Versions(ns.GetName(), r.GetFunction(), after), func(v *mayflyv1.Version) string { return strconv.FormatInt(v.GetNumber(), 10) }, all)
	return &mayflyv1.ListVersionsResponse{Versions: versions, NextPageToken: next}, nil
}

func numberAfter(p page) (int64, error) {
	if p.after == "" {
		return 0, nil
	}
	after, err := strconv.ParseInt(p.after, 10, 64)
	if err != nil {
		return 0, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN, "page_token is not from an answer to this query: begin without one")
	}
	return after, nil
}

// DeleteVersion deletes one version that no alias names.
func (s *versionService) DeleteVersion(ctx context.Context, r *mayflyv1.DeleteVersionRequest) (*mayflyv1.DeleteVersionResponse, error) {
	version, err := s.version(ctx, r.GetNamespace(), r.GetFunction(), r.GetNumber())
	if err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, &statev1.Command{Operation: &statev1.Command_DeleteVersion{
		DeleteVersion: &statev1.DeleteVersion{Namespace: version.GetNamespace(), Function: r.GetFunction(), Number: r.GetNumber()},
	}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.DeleteVersionResponse{}, nil
}
