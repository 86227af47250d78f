package api

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

type nodeService struct {
	mayflyv1.UnimplementedNodeServiceServer
	*core
}

// ListNodes shows stored and connected nodes, by name.
func (s *nodeService) ListNodes(context.Context, *mayflyv1.ListNodesRequest) (*mayflyv1.ListNodesResponse, error) {
	return &mayflyv1.ListNodesResponse{Nodes: s.nodes()}, nil
}

// nodes joins what is stored with what is observed: a node that isn't observed is down.
func (s *nodeService) nodes() []*mayflyv1.Node {
	observed := map[string]*mayflyv1.Node{}
	for _, node := range s.Fleet.Nodes() {
		observed[node.GetId()] = proto.CloneOf(node)
	}
	for stored := range s.View().Nodes() {
		node, ok := observed[stored.GetId()]
		if !ok {
			node = proto.CloneOf(stored)
			node.State = mayflyv1.NodeState_NODE_STATE_DOWN
			observed[stored.GetId()] = node
		}
		node.Meta, node.Name = stored.GetMeta(), stored.GetName()
		node.Server = node.GetServer() || stored.GetServer()
		node.Agent = node.GetAgent() || stored.GetAgent()
	}
	nodes := make([]*mayflyv1.Node, 0, len(observed))
	for _, id := range sortedKeys(observed) {
		nodes = append(nodes, observed[id])
	}
	slices.SortStableFunc(nodes, func(a, b *mayflyv1.Node) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return nodes
}

// GetNode reads one node by name or id.
func (s *nodeService) GetNode(_ context.Context, r *mayflyv1.GetNodeRequest) (*mayflyv1.GetNodeResponse, error) {
	node, err := s.node(r.GetNode())
	if err != nil {
		return nil, err
	}
	return &mayflyv1.GetNodeResponse{Node: node}, nil
}

func (s *nodeService) node(nameOrID string) (*mayflyv1.Node, error) {
	nodes := s.nodes()
	i := slices.IndexFunc(nodes, func(n *mayflyv1.Node) bool { return n.GetId() == nameOrID || n.GetName() == nameOrID })
	if i < 0 {
		return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_NODE_NOT_FOUND, "there is no node %.100q", nameOrID)
	}
	return nodes[i], nil
}

// DeleteNode forgets a node that is down.
func (s *nodeService) DeleteNode(ctx context.Context, r *mayflyv1.DeleteNodeRequest) (*mayflyv1.DeleteNodeResponse, error) {
	if err := wholeCluster(ctx, "delete a node"); err != nil {
		return nil, err
	}
	node, err := s.node(r.GetNode())
	if err != nil {
		return nil, err
	}
	if node.GetState() == mayflyv1.NodeState_NODE_STATE_UP || node.GetId() == s.Self.NodeID {
		return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "node %q is up: stop it first", node.GetName())
	}
	_, err = s.propose(ctx, &statev1.Command{Operation: &statev1.Command_DeleteNode{DeleteNode: &statev1.DeleteNode{Id: node.GetId()}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.DeleteNodeResponse{}, nil
}

// EnrollNode signs a worker's certificate and stores the node. A worker that enrolls again keeps its id.
func (s *nodeService) EnrollNode(ctx context.Context, r *mayflyv1.EnrollNodeRequest) (*mayflyv1.EnrollNodeResponse, error) {
	if err := wholeCluster(ctx, "enroll a node"); err != nil {
		return nil, err
	}
	if err := checkLabel("name", r.GetName()); err != nil {
		return nil, err
	}
	known, _ := s.View().NodeByName(r.GetName())
	if known.GetServer() {
		return nil, alreadyExists("%q is the name of a control-plane node: choose another", r.GetName())
	}
	certificate, id, err := s.Certificates.SignCSR(r.GetCertificateSigningRequest(), r.GetName(), known.GetId())
	if err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, &statev1.Command{Operation: &statev1.Command_PutNode{
		PutNode: &statev1.PutNode{Node: &mayflyv1.Node{Id: id, Name: r.GetName(), Agent: true}},
	}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.EnrollNodeResponse{Certificate: certificate, CaCertificate: s.Certificates.CertificatePEM(), NodeId: id}, nil
}
