package api

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const maxDomain = 190 // bytes; leaves room for NAME.fn. in front

type clusterService struct {
	mayflyv1.UnimplementedClusterServiceServer
	*core
}

// GetInfo shows the node that answers.
func (s *clusterService) GetInfo(context.Context, *mayflyv1.GetInfoRequest) (*mayflyv1.GetInfoResponse, error) {
	view := s.View()
	return &mayflyv1.GetInfoResponse{
		MayflyVersion: s.Self.MayflyVersion, ClusterId: view.Cluster().GetClusterId(), NodeId: s.Self.NodeID, NodeName: s.Self.NodeName,
		HttpUrl: s.Self.HTTPURL, Leader: s.Self.Leader(), AppliedIndex: view.Index(),
	}, nil
}

// GetSettings reads the cluster's settings.
func (s *clusterService) GetSettings(context.Context, *mayflyv1.GetSettingsRequest) (*mayflyv1.GetSettingsResponse, error) {
	return &mayflyv1.GetSettingsResponse{Settings: s.View().Settings()}, nil
}

// UpdateSettings changes the settings that are not empty.
func (s *clusterService) UpdateSettings(ctx context.Context, r *mayflyv1.UpdateSettingsRequest) (*mayflyv1.UpdateSettingsResponse, error) {
	if err := wholeCluster(ctx, "change the settings"); err != nil {
		return nil, err
	}
	if err := checkRevision("the settings", s.View().Settings().GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	region, domain := r.GetSettings().GetRegion(), r.GetSettings().GetUrlDomain()
	if region != "" && checkLabel("", region) != nil {
		return nil, invalid("settings.region %.100q is not 1 to %d lower-case letters, digits and \"-\"", region, maxLabel)
	}
	if domain != "" && !isDomain(domain) {
		return nil, invalid("settings.url_domain %.200q is not a domain name in lower case", domain)
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_UpdateSettings{UpdateSettings: &statev1.UpdateSettings{
		Settings: &mayflyv1.Settings{Region: region, UrlDomain: domain}, ExpectedRevision: r.GetExpectedRevision(),
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.UpdateSettingsResponse{Settings: result.GetSettings()}, nil
}

func isDomain(name string) bool {
	if len(name) > maxDomain {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if checkLabel("", label) != nil {
			return false
		}
	}
	return true
}

// RotateRootKey makes a new root key. Each control-plane node has its own copy, so it is for a cluster of one.
func (s *clusterService) RotateRootKey(ctx context.Context, _ *mayflyv1.RotateRootKeyRequest) (*mayflyv1.RotateRootKeyResponse, error) {
	if err := wholeCluster(ctx, "rotate the root key"); err != nil {
		return nil, err
	}
	servers := 0
	for node := range s.View().Nodes() {
		if node.GetServer() {
			servers++
		}
	}
	if servers > 1 {
		return nil, fault.New(codes.Unimplemented, mayflyv1.ErrorReason_ERROR_REASON_UNIMPLEMENTED,
			"the root key of a cluster with %d control-plane nodes can't be rotated: each has a copy of it", servers)
	}
	r, err := s.Config.RotateRootKey(ctx)
	if err != nil {
		return nil, err
	}
	s.Log.Info("rotated the root key", "root_key", r.RootKeyID, "access_keys", r.AccessKeys, "secrets", r.Secrets, "request_id", requestID(ctx))
	return &mayflyv1.RotateRootKeyResponse{RootKeyId: r.RootKeyID, AccessKeys: int32(r.AccessKeys), Secrets: int32(r.Secrets)}, nil
}

// ListRuntimes shows the managed runtime images of the nodes that are connected.
func (s *clusterService) ListRuntimes(context.Context, *mayflyv1.ListRuntimesRequest) (*mayflyv1.ListRuntimesResponse, error) {
	return &mayflyv1.ListRuntimesResponse{Runtimes: s.Fleet.Runtimes()}, nil
}
