// Package host knows the machine that Mayfly runs on: whether it has what is needed, how to install what is missing,
// and which processes, mounts and files Mayfly has left on it.
//
// What belongs here: checks, apt-get, cleaning up after processes that are gone. What does not: running sandboxes
// (agent), and printing (cli).
package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Host is what the checks and commands ask of a machine.
type Host interface {
	Geteuid() int
	Hostname() string
	// LookPath finds a program, also in the directories of root's PATH.
	LookPath(program string) (string, error)
	ReadFile(path string) ([]byte, error)
	Exists(path string) bool
	// KernelRelease is such as "6.1.0-18-amd64".
	KernelRelease() string
	// FSMagic is the type of the file system at path, 0 if unknown.
	FSMagic(path string) int64
	// FreeBytes of the file system that holds path, or its nearest parent that exists.
	FreeBytes(path string) (int64, error)
	// TryListen tells whether address can be listened on; the error wraps that of the system.
	TryListen(address string) error
	// TryNFTables tells whether the kernel's packet filter can be used; the error wraps that of the system.
	TryNFTables() error
}

// Local is the machine that the process runs on, seen below Root.
type Local struct {
	// Root is "/" but in tests.
	Root string
}

var _ Host = Local{}

func (l Local) path(p string) string { return filepath.Join(l.Root, p) }

// Geteuid is the effective user.
func (Local) Geteuid() int { return os.Geteuid() }

// Hostname is the machine's name, empty if unknown.
func (Local) Hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// LookPath finds a program.
func (l Local) LookPath(program string) (string, error) {
	if p, err := exec.LookPath(program); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		p := l.path(filepath.Join(dir, program))
		if info, err := os.Stat(p); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", program, exec.ErrNotFound)
}

// ReadFile reads a file.
func (l Local) ReadFile(path string) ([]byte, error) { return os.ReadFile(l.path(path)) }

// Exists tells whether something is at path.
func (l Local) Exists(path string) bool {
	_, err := os.Stat(l.path(path))
	return err == nil
}

// KernelRelease is the kernel's release, empty if unknown.
func (Local) KernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// FSMagic is the type of the file system at path.
func (l Local) FSMagic(path string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(l.path(path), &st); err != nil {
		return 0
	}
	return st.Type
}

// FreeBytes is what a process may still write below path.
func (l Local) FreeBytes(path string) (int64, error) {
	p := l.path(path)
	for {
		var st unix.Statfs_t
		err := unix.Statfs(p, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if !errors.Is(err, unix.ENOENT) || p == filepath.Dir(p) {
			return 0, fmt.Errorf("free space of %s: %w", p, err)
		}
		p = filepath.Dir(p)
	}
}

// TryListen listens for a moment.
func (Local) TryListen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return l.Close()
}

// TryNFTables reads the names of the tables.
func (Local) TryNFTables() error {
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTablesOfFamily(nftables.TableFamilyINet)
	}
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	return nil
}

// Cgroups is how a host mounts control groups.
type Cgroups string

// The ways to mount control groups.
const (
	CgroupsV1     Cgroups = "v1"
	CgroupsV2     Cgroups = "v2"
	CgroupsHybrid Cgroups = "hybrid"
	CgroupsNone   Cgroups = "none"
)

// CgroupMode finds out how control groups are mounted.
func CgroupMode(h Host) Cgroups {
	const root = "/sys/fs/cgroup"
	switch {
	case h.FSMagic(root) == unix.CGROUP2_SUPER_MAGIC:
		return CgroupsV2
	case h.FSMagic(root+"/unified") == unix.CGROUP2_SUPER_MAGIC:
		return CgroupsHybrid
	case h.FSMagic(root+"/memory") == unix.CGROUP_SUPER_MAGIC:
		return CgroupsV1
	default:
		return CgroupsNone
	}
}

func readTrimmed(h Host, path string) string {
	text, err := h.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
