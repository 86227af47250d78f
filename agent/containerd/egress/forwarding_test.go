package egress

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// settings makes a directory like /proc/sys/net.
func settings(t *testing.T, values map[string]string) sysctls {
	t.Helper()
	dir := t.TempDir()
	for path, value := range values {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return sysctls(dir)
}

// apply does as table.forward, and returns what was recorded.
func apply(t *testing.T, k sysctls, v6 bool, uplinks ...string) (records, string) {
	t.Helper()
	all := records{}
	var changes []string
	for _, s := range k.missing(uplinks, v6) {
		all.add(s.record, s.name)
		changes = append(changes, s.record+" "+s.name)
		if err := set(s.path, s.needed); err != nil {
			t.Fatal(err)
		}
	}
	return all, strings.Join(changes, ", ")
}

func read(t *testing.T, k sysctls, values map[string]string) map[string]string {
	t.Helper()
	now := map[string]string{}
	for path := range values {
		now[path] = value(filepath.Join(string(k), path))
	}
	return now
}

func TestForwarding(t *testing.T) {
	recent := map[string]string{
		"ipv4/conf/eth0/forwarding": "0", "ipv4/conf/eth1/forwarding": "1", "ipv6/conf/all/forwarding": "0", "ipv6/conf/all/force_forwarding": "0",
		"ipv6/conf/eth0/force_forwarding": "0", "ipv6/conf/eth1/force_forwarding": "0", "ipv6/conf/eth0/accept_ra": "1",
	}
	old := map[string]string{
		"ipv4/conf/eth0/forwarding": "0", "ipv4/conf/eth1/forwarding": "0", "ipv6/conf/all/forwarding": "0", "ipv6/conf/lo/accept_ra": "1",
		"ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "0", "ipv6/conf/default/accept_ra": "1", "ipv6/conf/all/accept_ra": "1",
	}
	router := maps.Clone(old)
	router["ipv6/conf/all/forwarding"], router["ipv4/conf/eth0/forwarding"] = "1", "1"
	for name, c := range map[string]struct {
		values map[string]string
		v6     bool
		want   string
	}{
		"by interface": {recent, true, "forwarding4 eth0, forwarding6 eth0, forwarding6 eth1"},
		"IPv4 only":    {recent, false, "forwarding4 eth0"},
		// What learns routes must be told before all forward.
		"old kernel": {old, true, "forwarding4 eth0, forwarding4 eth1, accept-ra default, accept-ra eth0, forwarding6 all"},
		"a router":   {router, true, "forwarding4 eth1"},
	} {
		t.Run(name, func(t *testing.T) {
			k := settings(t, c.values)
			recorded, changes := apply(t, k, c.v6, "eth0", "eth1")
			if changes != c.want {
				t.Errorf("changed %s, want %s", changes, c.want)
			}
			if again := k.missing([]string{"eth0", "eth1"}, c.v6); len(again) > 0 {
				t.Errorf("still missing: %v", again)
			}
			if err := k.putBack(recorded); err != nil {
				t.Fatal(err)
			}
			if now := read(t, k, c.values); !maps.Equal(now, c.values) {
				t.Errorf("afterwards %v, before %v", now, c.values)
			}
		})
	}
}

func TestPutBackLeavesWhatOthersHaveChanged(t *testing.T) {
	values := map[string]string{"ipv6/conf/eth0/accept_ra": "0", "ipv4/conf/eth0/forwarding": "1"}
	k := settings(t, values)
	all := records{}
	all.add(recordAcceptRA, "eth0") // it was 2, and somebody has switched it off
	all.add(recordForwarding4, "eth9")
	if err := k.putBack(all); err != nil {
		t.Fatal(err)
	}
	if now := read(t, k, values); !maps.Equal(now, values) {
		t.Errorf("%v, want %v", now, values)
	}
	if _, err := os.Stat(k.v4("eth9", "forwarding")); err == nil {
		t.Error("a setting was made for an interface that has gone")
	}
}
