package api

import (
	"context"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// PutFunctionConcurrency reserves concurrency. That all reservations fit into the namespace's quota is apply's to check.
func (s *functionService) PutFunctionConcurrency(ctx context.Context, r *mayflyv1.PutFunctionConcurrencyRequest) (*mayflyv1.PutFunctionConcurrencyResponse, error) {
	_, ns, err := function(ctx, s.View(), r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	reserved, quota := r.GetReservedConcurrency(), ns.GetQuotas().GetConcurrency()
	if reserved < 0 {
		return nil, invalid("reserved_concurrency %d is negative", reserved)
	}
	if reserved > quota {
		return nil, fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED, "reserved_concurrency %d is more than namespace %q has, which is %d", reserved, ns.GetName(), quota)
	}
	fn, err := s.setConcurrency(ctx, ns.GetName(), r.GetName(), &reserved)
	return &mayflyv1.PutFunctionConcurrencyResponse{Function: fn}, err
}

// DeleteFunctionConcurrency lets the function share the namespace's concurrency again.
func (s *functionService) DeleteFunctionConcurrency(ctx context.Context, r *mayflyv1.DeleteFunctionConcurrencyRequest) (*mayflyv1.DeleteFunctionConcurrencyResponse, error) {
	_, ns, err := function(ctx, s.View(), r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	fn, err := s.setConcurrency(ctx, ns.GetName(), r.GetName(), nil)
	return &mayflyv1.DeleteFunctionConcurrencyResponse{Function: fn}, err
}

func (s *functionService) setConcurrency(ctx context.Context, ns, name string, reserved *int32) (*mayflyv1.Function, error) {
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_SetFunctionConcurrency{
		SetFunctionConcurrency: &statev1.SetFunctionConcurrency{Namespace: ns, Name: name, ReservedConcurrency: reserved},
	}})
	return result.GetFunction(), err
}

// PutFunctionUrl makes a function reachable by HTTP.
func (s *functionService) PutFunctionUrl(ctx context.Context, r *mayflyv1.PutFunctionUrlRequest) (*mayflyv1.PutFunctionUrlResponse, error) {
	view := s.View()
	fn, ns, err := function(ctx, view, r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	if r.GetUrl() == nil {
		return nil, invalid("url is missing: give at least its auth_type")
	}
	url, err := completeURL(r.GetUrl())
	if err != nil {
		return nil, err
	}
	if qualifier := url.GetQualifier(); qualifier != "" {
		if err := qualifierExists(view, fn, qualifier); err != nil {
			return nil, err
		}
	}
	changed, err := s.setURL(ctx, ns.GetName(), r.GetName(), url)
	return &mayflyv1.PutFunctionUrlResponse{Function: changed, Url: s.urlText(changed)}, err
}

// DeleteFunctionUrl ends that.
func (s *functionService) DeleteFunctionUrl(ctx context.Context, r *mayflyv1.DeleteFunctionUrlRequest) (*mayflyv1.DeleteFunctionUrlResponse, error) {
	_, ns, err := function(ctx, s.View(), r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return nil, err
	}
	fn, err := s.setURL(ctx, ns.GetName(), r.GetName(), nil)
	return &mayflyv1.DeleteFunctionUrlResponse{Function: fn}, err
}

func (s *functionService) setURL(ctx context.Context, ns, name string, url *mayflyv1.FunctionUrl) (*mayflyv1.Function, error) {
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_SetFunctionUrl{
		SetFunctionUrl: &statev1.SetFunctionUrl{Namespace: ns, Name: name, Url: url},
	}})
	return result.GetFunction(), err
}
