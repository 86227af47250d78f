package seccomp

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// judge runs the program as the kernel does.
func judge(t *testing.T, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	raw := make([]bpf.RawInstruction, 0, 512)
	for _, i := range Program() {
		raw = append(raw, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("not all instructions are known")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	// struct seccomp_data; this machine loads words big-endian, the low half of an argument is first in ours.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data, nr)
	binary.BigEndian.PutUint32(data[4:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	action, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(action)
}

func TestEveryCall(t *testing.T) {
	allowed := slices.Concat(common(), native())
	special := []uint32{unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_SOCKET, unix.SYS_PERSONALITY, unix.SYS_IOCTL}
	for nr := range uint32(1000) {
		if slices.Contains(special, nr) {
			continue
		}
		want := errno(unix.EPERM)
		switch {
		case slices.Contains(allowed, nr):
			want = unix.SECCOMP_RET_ALLOW
		case nr > newestKnown:
			want = errno(unix.ENOSYS)
		}
		if got := judge(t, auditArch, nr); got != want {
			t.Errorf("call %d: %#x, want %#x", nr, got, want)
		}
	}
}

func TestDangerousCallsAreNotListed(t *testing.T) {
	allowed := slices.Concat(common(), native())
	for _, nr := range []uint32{
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_PTRACE,
		unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_KEYCTL,
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_IO_URING_SETUP, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_KEXEC_LOAD,
		unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_PIDFD_GETFD,
		unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_MOUNT_SETATTR, unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_QUOTACTL,
	} {
		if slices.Contains(allowed, nr) {
			t.Errorf("call %d is allowed", nr)
		}
	}
}

func TestArguments(t *testing.T) {
	const allowed = uint32(unix.SECCOMP_RET_ALLOW)
	refused := errno(unix.EPERM)
	for _, c := range []struct {
		name string
		nr   uint32
		args []uint64
		want uint32
	}{
		{"a thread", unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND}, allowed},
		{"a process", unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, allowed},
		{"a user namespace", unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER}, refused},
		{"a network namespace", unix.SYS_CLONE, []uint64{unix.CLONE_NEWNET | unix.CLONE_VM}, refused},
		{"clone3", unix.SYS_CLONE3, nil, errno(unix.ENOSYS)},
		{"unix socket", unix.SYS_SOCKET, []uint64{unix.AF_UNIX}, allowed},
		{"IPv4 socket", unix.SYS_SOCKET, []uint64{unix.AF_INET}, allowed},
		{"IPv6 socket", unix.SYS_SOCKET, []uint64{unix.AF_INET6}, allowed},
		{"netlink socket", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK}, allowed},
		{"packet socket", unix.SYS_SOCKET, []uint64{unix.AF_PACKET}, refused},
		{"vsock", unix.SYS_SOCKET, []uint64{unix.AF_VSOCK}, refused},
		{"kernel crypto", unix.SYS_SOCKET, []uint64{unix.AF_ALG}, refused},
		{"ask for the personality", unix.SYS_PERSONALITY, []uint64{0xffffffff}, allowed},
		{"no address randomisation", unix.SYS_PERSONALITY, []uint64{0x40000}, refused},
		{"terminal size", unix.SYS_IOCTL, []uint64{1, unix.TIOCGWINSZ}, allowed},
		{"typing for others", unix.SYS_IOCTL, []uint64{1, unix.TIOCSTI}, refused},
		{"typing for others, high bits set", unix.SYS_IOCTL, []uint64{1, unix.TIOCSTI | 1<<32}, refused},
	} {
		if got := judge(t, auditArch, c.nr, c.args...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestOtherArchitectures(t *testing.T) {
	if got := judge(t, unix.AUDIT_ARCH_I386, unix.SYS_READ); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("i386: %#x", got)
	}
	const x32 = 0x40000000
	if got := judge(t, auditArch, x32|unix.SYS_READ); got != errno(unix.ENOSYS) {
		t.Errorf("x32: %#x", got)
	}
}
