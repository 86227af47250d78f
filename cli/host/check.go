package host

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// Status is the outcome of a check.
type Status string

// Outcomes: a warning is no obstacle.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Missing Status = "missing"
)

// Result is what a check found.
type Result struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	// Found is what there is, for people.
	Found string `json:"found"`
	// Advice is what to do, if anything.
	Advice string `json:"advice,omitempty"`
	// Packages mend it when apt-get installs them.
	Packages []string `json:"packages,omitempty"`
}

// Options say what to check.
type Options struct {
	StateDir string
	// Addresses are those that must be free; none are checked if it is empty.
	Addresses []string
}

// minFreeBytes is room for the runtime images, with what building them needs, and some functions.
const minFreeBytes = 2 << 30

// program is one that Mayfly runs; any of names will do.
type program struct {
	names    []string
	packages []string
	why      string
}

var programs = []program{
	{names: []string{"containerd"}, packages: []string{"containerd"}, why: "sandboxes"},
	{names: []string{"runc"}, packages: []string{"runc"}, why: "sandboxes"},
	{names: []string{"containerd-shim-runc-v2"}, packages: []string{"containerd"}, why: "sandboxes"},
	{names: []string{"mkfs.ext4"}, packages: []string{"e2fsprogs"}, why: "the sandboxes' /tmp"},
	{names: []string{"mmdebstrap"}, packages: []string{"mmdebstrap"}, why: "runtime images"},
	{names: []string{"curl"}, packages: []string{"curl", "ca-certificates"}, why: "the HTTP call of `make up`"},
}

// Check looks at everything.
func Check(h Host, o Options) []Result {
	results := []Result{root(h), kernel(h), cgroups(h), userNamespaces(h), nfTables(h)}
	for _, p := range programs {
		results = append(results, p.check(h))
	}
	results = append(results, keyring(h), disk(h, o.StateDir))
	for _, a := range o.Addresses {
		results = append(results, port(h, a))
	}
	return results
}

func root(h Host) Result {
	r := Result{Check: "root", Status: OK, Found: "yes"}
	if h.Geteuid() != 0 {
		r.Status, r.Found, r.Advice = Missing, "no", "`mayfly up` and `mayfly agent` need root: use sudo"
	}
	return r
}

// kernel wants 5.12, which brought mount_setattr.
func kernel(h Host) Result {
	r := Result{Check: "kernel", Status: OK, Found: h.KernelRelease()}
	if !atLeast(r.Found, 5, 12) {
		r.Status, r.Advice = Missing, "Linux 5.12 or newer is needed"
	}
	return r
}

func atLeast(release string, major, minor int) bool {
	parts := strings.FieldsFunc(release, func(c rune) bool { return c < '0' || c > '9' })
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

func cgroups(h Host) Result {
	mode := CgroupMode(h)
	r := Result{Check: "cgroups", Status: OK, Found: string(mode)}
	if mode == CgroupsNone {
		r.Status, r.Advice = Missing, "mount control groups at /sys/fs/cgroup: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
	}
	return r
}

func userNamespaces(h Host) Result {
	limit := readTrimmed(h, "/proc/sys/user/max_user_namespaces")
	r := Result{Check: "user namespaces", Status: OK, Found: "at most " + limit}
	if limit == "" || limit == "0" {
		r.Status, r.Found = Missing, "disabled"
		r.Advice = "sysctl -w user.max_user_namespaces=65536, or a kernel that has them"
	}
	return r
}

// nfTables is what gives sandboxes network access; without, functions that need none still run.
func nfTables(h Host) Result {
	r := Result{Check: "nf_tables", Status: OK, Found: "yes"}
	if err := h.TryNFTables(); err != nil {
		r.Status, r.Found = Warning, err.Error()
		r.Advice = "only functions with the egress policy none can run: use a kernel with nf_tables (modprobe nf_tables), as root"
	}
	return r
}

func (p program) check(h Host) Result {
	r := Result{Check: p.names[0], Status: OK}
	for _, name := range p.names {
		if path, err := h.LookPath(name); err == nil {
			r.Found = path
			return r
		}
	}
	r.Status, r.Found, r.Packages = Missing, "not found", p.packages
	r.Advice = fmt.Sprintf("needed for %s: apt-get install %s (or `mayfly doctor --install`)", p.why, strings.Join(p.packages, " "))
	return r
}

// keyrings are where releases of Debian and Ubuntu keep the keys of Debian's archive.
var keyrings = []string{
	"/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp",
	"/etc/apt/trusted.gpg.d/debian-archive-keyring.gpg", "/etc/apt/trusted.gpg.d/debian-archive-keyring.pgp",
}

func keyring(h Host) Result {
	r := Result{Check: "debian-archive-keyring", Status: OK}
	for _, path := range keyrings {
		if h.Exists(path) {
			r.Found = path
			return r
		}
	}
	r.Status, r.Found, r.Packages = Missing, "not found", []string{"debian-archive-keyring"}
	r.Advice = "needed for runtime images: apt-get install debian-archive-keyring (or `mayfly doctor --install`)"
	return r
}

func disk(h Host, dir string) Result {
	r := Result{Check: "disk space", Status: OK}
	free, err := h.FreeBytes(dir)
	if err != nil {
		r.Status, r.Found, r.Advice = Warning, err.Error(), "see whether "+dir+" can be made"
		return r
	}
	r.Found = fmt.Sprintf("%.1f GiB free for %s", float64(free)/(1<<30), dir)
	if free < minFreeBytes {
		r.Status, r.Advice = Warning, "2 GiB are wanted for runtime images and functions; writes are refused below --min-free-bytes"
	}
	return r
}

func port(h Host, address string) Result {
	r := Result{Check: "port " + address, Status: OK, Found: "free"}
	err := h.TryListen(address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		r.Status, r.Found = Warning, "taken"
		r.Advice = "fine if it is Mayfly's (`mayfly status`); else choose another address, `ss -ltnp` tells who has it"
	case err != nil:
		r.Status, r.Found, r.Advice = Warning, err.Error(), "choose an address that this machine has"
	}
	return r
}
