package agent

import (
	"context"
	"errors"

	"github.com/mayfly-faas/mayfly/agent/runtimes"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// ImageBuilder builds runtime images and removes those that nothing uses any more: *runtimes.Images.
type ImageBuilder interface {
	Build(ctx context.Context, name string, opts runtimes.BuildOptions) (*runtimes.Image, error)
	// Prune leaves images that a sandbox of any process holds.
	Prune() (int, error)
}

// maxBuildText is how much of a failed build's output callers see, in bytes.
const maxBuildText = 1000

// ensureImage builds the image of a runtime if the node has none. The control plane knows before it returns.
func (a *Agent) ensureImage(ctx context.Context, name string) error {
	_, err := a.images.find(name)
	if !errors.Is(err, errNoImage) || a.cfg.Builder == nil {
		return err
	}
	a.log.Info("building a runtime image, since a function needs it", "runtime", name)
	if _, err := a.cfg.Builder.Build(ctx, name, runtimes.BuildOptions{}); err != nil {
		return a.buildFailed(ctx, name, err)
	}
	a.reporting.Lock()
	defer a.reporting.Unlock()
	a.reportAll(&agentv1.Report{Used: a.room.used(), Runtimes: a.images.list()})
	return nil
}

// buildFailed tells the one who deploys why: it is about the node, not about other tenants.
func (a *Agent) buildFailed(ctx context.Context, name string, err error) error {
	a.log.Error("a runtime image was not built", "runtime", name, "error", err)
	if _, ok := errors.AsType[*fault.Error](err); ok || ctx.Err() != nil {
		return gaveUp(ctx, err)
	}
	text := err.Error()
	return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME,
		"node %s can't build it: %s", a.cfg.NodeName, text[:min(len(text), maxBuildText)])
}

// pruneImages removes images that nothing uses, at the start and whenever there may be some.
func (a *Agent) pruneImages(ctx context.Context) error {
	for {
		n, err := a.cfg.Builder.Prune()
		if err != nil {
			a.log.Warn("old runtime images were not removed", "error", err)
		}
		if n > 0 {
			a.log.Info("removed runtime images that nothing uses", "count", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.spare:
		}
	}
}

// mayPrune says that an image may have no users left. It never waits.
func (a *Agent) mayPrune() {
	select {
	case a.spare <- struct{}{}:
	default:
	}
}
