package seccomp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; arguments are little-endian, so the low word comes first.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
	offArg1   = 24
)

// namespaceFlags are the CLONE_NEW* flags.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// newestKnown is the highest number that was judged when the list was written (set_mempolicy_home_node). A newer
// call answers ENOSYS, on which C libraries fall back; an older one that is not allowed answers EPERM.
const newestKnown = 450

// Install restricts the whole process, all its threads, and every process that it starts from now on. It needs
// no_new_privs, which it sets. It can't be undone.
func Install() error {
	prog := Program()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&fprog))) //nolint:gosec // the kernel copies the program during the call
	switch {
	case errno != 0:
		return fmt.Errorf("install the seccomp filter: %w", errno)
	case r != 0:
		return errors.New("install the seccomp filter: a thread could not be synchronised")
	}
	return nil
}

// Program is the BPF program of the allow-list.
func Program() []unix.SockFilter {
	p := []unix.SockFilter{
		load(offArch),
		jump(unix.BPF_JEQ, auditArch, 1, 0),
		ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(offNumber),
	}
	p = append(p, special()...)
	return append(p, search(ranges(slices.Concat(common(), native())))...)
}

// special are the calls that depend on their arguments. Each part begins and ends with the call's number loaded.
func special() []unix.SockFilter {
	return slices.Concat(
		// glibc falls back to clone, whose flags a filter can see.
		onCall(unix.SYS_CLONE3, ret(errno(unix.ENOSYS))),
		onCall(unix.SYS_CLONE, load(offArg0), jump(unix.BPF_JSET, namespaceFlags, 0, 1), ret(errno(unix.EPERM)), allow()),
		onCall(unix.SYS_SOCKET, oneOf(offArg0, unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK)...),
		// PER_LINUX, PER_LINUX32, UNAME26 with both, and asking.
		onCall(unix.SYS_PERSONALITY, oneOf(offArg0, 0, 8, 0x20000, 0x20008, 0xffffffff)...),
		onCall(unix.SYS_IOCTL, noneOf(offArg1, unix.TIOCSTI, unix.TIOCLINUX)...),
	)
}

func onCall(nr uint32, body ...unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{jump(unix.BPF_JEQ, nr, 0, uint8(len(body)))}, body...)
}

func oneOf(off uint32, values ...uint32) []unix.SockFilter {
	return match(off, values, allow(), ret(errno(unix.EPERM)))
}

func noneOf(off uint32, values ...uint32) []unix.SockFilter {
	return match(off, values, ret(errno(unix.EPERM)), allow())
}

func match(off uint32, values []uint32, found, otherwise unix.SockFilter) []unix.SockFilter {
	p := []unix.SockFilter{load(off)}
	for i, v := range values {
		p = append(p, jump(unix.BPF_JEQ, v, uint8(len(values)-i), 0))
	}
	return append(p, otherwise, found)
}

// span is a run of allowed numbers, both ends included.
type span struct{ first, last uint32 }

func ranges(nrs []uint32) []span {
	slices.SortFunc(nrs, cmp.Compare[uint32])
	var out []span
	for _, nr := range nrs {
		if n := len(out); n > 0 && nr <= out[n-1].last+1 {
			out[n-1].last = nr
			continue
		}
		out = append(out, span{nr, nr})
	}
	return out
}

// search is a binary search over the spans: some eight comparisons a call instead of hundreds.
func search(spans []span) []unix.SockFilter {
	if len(spans) == 1 {
		s := spans[0]
		return []unix.SockFilter{
			jump(unix.BPF_JGE, s.first, 0, 2),
			jump(unix.BPF_JGT, s.last, 1, 0),
			allow(),
			jump(unix.BPF_JGT, newestKnown, 1, 0),
			ret(errno(unix.EPERM)),
			ret(errno(unix.ENOSYS)),
		}
	}
	mid := len(spans) / 2
	low, high := search(spans[:mid]), search(spans[mid:])
	// Offsets of conditional jumps have 8 bits, so the far side is reached by an unconditional one.
	head := []unix.SockFilter{
		jump(unix.BPF_JGE, spans[mid].first, 0, 1),
		{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(low))},
	}
	return slices.Concat(head, low, high)
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

func allow() unix.SockFilter { return ret(unix.SECCOMP_RET_ALLOW) }

func errno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }
