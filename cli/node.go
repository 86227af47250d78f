package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (a *App) nodeCommand() *cobra.Command {
	return group("node", "Show the machines of the cluster and let workers in",
		a.nodeList(), a.nodeGet(), a.nodeDelete(), a.nodeEnroll())
}

func (a *App) nodeList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List nodes", Args: argsNamed(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.nodes.ListNodes(ctx, &mayflyv1.ListNodesRequest{})
				if err != nil {
					return err
				}
				return a.print(r, nodeTable(r.GetNodes()))
			})
		},
	}
}

func nodeTable(nodes []*mayflyv1.Node) table {
	t := table{header: []string{"NAME", "STATE", "ROLES", "SANDBOXES", "MEMORY", "CPU", "VERSION", "LAST SEEN", "EGRESS"}}
	for _, n := range nodes {
		t.rows = append(t.rows, []string{
			n.GetName(), nodeState(n), nodeRoles(n), fmt.Sprint(n.GetSandboxes()),
			sizeOf(n.GetUsed().GetMemoryBytes()) + " / " + sizeOf(n.GetCapacity().GetMemoryBytes()),
			cpus(n.GetUsed()) + " / " + cpus(n.GetCapacity()), orDash(n.GetMayflyVersion()), timeOf(n.GetLastSeen()), nodeEgress(n),
		})
	}
	return t
}

// nodeEgress tells whether functions have network access there.
func nodeEgress(n *mayflyv1.Node) string {
	switch {
	case !n.GetAgent():
		return "-"
	case n.GetEgressError() != "":
		return "unavailable"
	}
	return "ok"
}

func nodeState(n *mayflyv1.Node) string { return stateName(n.GetState(), "NODE_STATE_") }

func cpus(r *mayflyv1.NodeResources) string {
	return fmt.Sprintf("%.1f", float64(r.GetMilliCpus())/1000)
}

func nodeRoles(n *mayflyv1.Node) string {
	var roles []string
	if n.GetServer() {
		roles = append(roles, "server")
	}
	if n.GetLeader() {
		roles = append(roles, "leader")
	}
	if n.GetAgent() {
		roles = append(roles, "agent")
	}
	return orDash(strings.Join(roles, ","))
}

func (a *App) nodeGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NODE", Short: "Show a node, by name or id", Args: argsNamed("NODE"), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.nodes.GetNode(ctx, &mayflyv1.GetNodeRequest{Node: args[0]})
				if err != nil {
					return err
				}
				n := r.GetNode()
				return a.print(r, details(
					"name", n.GetName(), "id", n.GetId(), "state", nodeState(n), "roles", nodeRoles(n),
					"memory", sizeOf(n.GetUsed().GetMemoryBytes())+" of "+sizeOf(n.GetCapacity().GetMemoryBytes()),
					"cpu", cpus(n.GetUsed())+" of "+cpus(n.GetCapacity()),
					"sandboxes", fmt.Sprint(n.GetSandboxes()), "runtimes", strings.Join(n.GetRuntimes(), " "),
					"version", n.GetMayflyVersion(), "last seen", timeOf(n.GetLastSeen()),
					"egress", nodeEgress(n), "egress error", n.GetEgressError()))
			})
		},
	}
}

func (a *App) nodeDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NODE", Short: "Forget a node that is down", Args: argsNamed("NODE"), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.nodes.DeleteNode(ctx, &mayflyv1.DeleteNodeRequest{Node: args[0]})
				if err != nil {
					return err
				}
				return a.changed(r, args[0], "Deleted node %s", args[0])
			})
		},
	}
}
