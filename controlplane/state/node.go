package state

import (
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// putNode stores who a node is; what it reports of itself is observed and never stored.
func (t *tx) putNode(c *statev1.PutNode) (*mayflyv1.Node, error) {
	n := &mayflyv1.Node{Id: c.GetNode().GetId(), Name: c.GetNode().GetName(), Server: c.GetNode().GetServer(), Agent: c.GetNode().GetAgent()}
	if err := checkID("the node's id", n.GetId()); err != nil {
		return nil, err
	}
	if err := checkID("the node's name", n.GetName()); err != nil {
		return nil, err
	}
	if other, ok := getBy[*mayflyv1.Node](t.mem, indexAlt, key(prefixNode, n.GetName())); ok && other.GetId() != n.GetId() {
		return nil, exists("the name %q belongs to node %s: choose another name, or delete that node first", n.GetName(), other.GetId())
	}
	old, ok := get[*mayflyv1.Node](t.mem, key(prefixNode, n.GetId()))
	if !ok {
		n.Meta = t.newMeta()
		t.put(nil, n)
		return n, nil
	}
	n.Meta = t.touched(old.GetMeta())
	t.put(old, n)
	return n, nil
}

func (t *tx) deleteNode(c *statev1.DeleteNode) (*mayflyv1.Node, error) {
	n, ok := get[*mayflyv1.Node](t.mem, key(prefixNode, c.GetId()))
	if !ok {
		return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_NODE_NOT_FOUND,
			"there is no node %q: list the nodes to find its id", c.GetId())
	}
	t.remove(n)
	return n, nil
}
