package seccomp

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// native are the calls whose names only arm64 has.
func native() []uint32 {
	return []uint32{unix.SYS_FSTATAT}
}
