package state

import (
	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Settings of a cluster that set none. They are part of what entries mean: never change them.
const (
	DefaultRegion    = "us-east-1"
	DefaultURLDomain = "localhost"
)

// initCluster makes the first records. It answers the settings that there are if the cluster has been initialised.
func (t *tx) initCluster(c *statev1.InitCluster) (*mayflyv1.Settings, error) {
	if t.clusterRecord().GetClusterId() != "" {
		return settings(t.mem), nil
	}
	if err := checkID("the cluster's id", c.GetClusterId()); err != nil {
		return nil, err
	}
	n := proto.CloneOf(c.GetDefaultNamespace())
	if n == nil {
		n = &mayflyv1.Namespace{}
	}
	n.Name = DefaultNamespace
	if err := t.checkNewNamespace(n); err != nil {
		return nil, err
	}
	n.Quotas = mergeQuotas(defaultQuotas(), n.GetQuotas())
	n.Meta = t.newMeta()
	t.put(nil, n)
	s := defaultSettings()
	mergeSettings(s, c.GetSettings())
	s.Meta = t.newMeta()
	t.put(nil, s)
	t.put(nil, &statev1.ClusterRecord{ClusterId: c.GetClusterId(), Time: t.now})
	return s, nil
}

func (t *tx) updateSettings(c *statev1.UpdateSettings) (*mayflyv1.Settings, error) {
	old := settings(t.mem)
	if err := checkRevision("the settings", c.GetExpectedRevision(), old.GetMeta()); err != nil {
		return nil, err
	}
	s := proto.CloneOf(old)
	mergeSettings(s, c.GetSettings())
	if s.GetRegion() != old.GetRegion() && t.anyFunction() {
		return nil, inUse("the region can't be changed from %q to %q: the ARNs of functions hold it; delete all functions first", old.GetRegion(), s.GetRegion())
	}
	if old.GetMeta() == nil {
		s.Meta = t.newMeta()
	} else {
		s.Meta = t.touched(old.GetMeta())
	}
	t.put(nil, s)
	return s, nil
}

func (t *tx) anyFunction() bool {
	all := within(prefixFunction)
	for range scan[*mayflyv1.Function](t.mem, all, all) {
		return true
	}
	return false
}

func mergeSettings(s, new *mayflyv1.Settings) {
	if v := new.GetRegion(); v != "" {
		s.Region = v
	}
	if v := new.GetUrlDomain(); v != "" {
		s.UrlDomain = v
	}
}

func defaultSettings() *mayflyv1.Settings {
	return &mayflyv1.Settings{Region: DefaultRegion, UrlDomain: DefaultURLDomain}
}

func settings(txn *memdb.Txn) *mayflyv1.Settings {
	if s, ok := get[*mayflyv1.Settings](txn, key(prefixSettings)); ok {
		return s
	}
	return defaultSettings()
}

func (t *tx) clusterRecord() *statev1.ClusterRecord {
	if c, ok := get[*statev1.ClusterRecord](t.mem, key(prefixCluster)); ok {
		return c
	}
	return &statev1.ClusterRecord{}
}
