package egress

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sets of records, each with the names of the interfaces of which Mayfly has changed a setting.
const (
	recordForwarding4 = "forwarding4"
	recordForwarding6 = "forwarding6"
	recordAcceptRA    = "accept-ra"

	// allInterfaces stands for the setting of all in recordForwarding6.
	allInterfaces = "all"
)

func recordSets() []string { return []string{recordForwarding4, recordForwarding6, recordAcceptRA} }

// setting is a value below /proc/sys that Mayfly needs, and the one that it finds where nobody has set it.
type setting struct {
	record, name  string
	path          string
	usual, needed string
}

// sysctls is the directory of the kernel's settings of the network, those of this process's network namespace.
type sysctls string

const kernel sysctls = "/proc/sys/net"

func (k sysctls) v4(name, key string) string { return filepath.Join(string(k), "ipv4/conf", name, key) }

func (k sysctls) v6(name, key string) string { return filepath.Join(string(k), "ipv6/conf", name, key) }

// setting is what a record stands for.
func (k sysctls) setting(record, name string) setting {
	s := setting{record: record, name: name, usual: "0", needed: "1"}
	switch {
	case record == recordForwarding4:
		s.path = k.v4(name, "forwarding")
	case record == recordAcceptRA:
		// A host that forwards listens to routers only if it is told twice.
		s.path, s.usual, s.needed = k.v6(name, "accept_ra"), "1", "2"
	case name == allInterfaces:
		s.path = k.v6(name, "forwarding")
	default:
		s.path = k.v6(name, "force_forwarding")
	}
	return s
}

// missing are the settings without which packets of sandboxes don't pass the interfaces named, in the order in which they must
// be made.
func (k sysctls) missing(uplinks []string, v6 bool) []setting {
	var all []setting
	for _, name := range uplinks {
		all = append(all, k.setting(recordForwarding4, name))
	}
	switch {
	case !v6 || value(k.v6(allInterfaces, "forwarding")) == "1":
	case exists(k.v6(allInterfaces, "force_forwarding")): // Linux 6.17: by interface, and nothing else changes
		for _, name := range uplinks {
			all = append(all, k.setting(recordForwarding6, name))
		}
	default:
		for _, name := range k.interfaces6() {
			all = append(all, k.setting(recordAcceptRA, name))
		}
		all = append(all, k.setting(recordForwarding6, allInterfaces))
	}
	var wrong []setting
	for _, s := range all {
		if value(s.path) == s.usual {
			wrong = append(wrong, s)
		}
	}
	return wrong
}

// interfaces6 are all that have IPv6, and those to come.
func (k sysctls) interfaces6() []string {
	entries, _ := os.ReadDir(k.v6("", "")) // none without IPv6
	var names []string
	for _, e := range entries {
		if e.Name() != allInterfaces && e.Name() != "lo" {
			names = append(names, e.Name())
		}
	}
	return names
}

func value(path string) string {
	b, _ := os.ReadFile(path) // a setting that isn't there needs no change
	return strings.TrimSpace(string(b))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func set(path, value string) error {
	err := os.WriteFile(path, []byte(value), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the interface has gone
	}
	if err != nil {
		return fmt.Errorf("let the host forward packets of sandboxes: %w", err)
	}
	return nil
}

// forward lets the host forward between sandboxes' interfaces and the ones named. What it changes is recorded first.
func (t *table) forward(uplinks []string, v6 bool) error {
	for _, s := range kernel.missing(uplinks, v6) {
		if err := t.record(s.record, s.name); err != nil {
			return err
		}
		if err := set(s.path, s.needed); err != nil {
			return err
		}
	}
	return nil
}

// putBack undoes what was recorded, but for what somebody has changed since.
func (k sysctls) putBack(all records) error {
	var errs []error
	for _, record := range recordSets() {
		for name := range all[record] {
			if s := k.setting(record, name); value(s.path) == s.needed {
				errs = append(errs, set(s.path, s.usual))
			}
		}
	}
	return errors.Join(errs...)
}
