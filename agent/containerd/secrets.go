package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

const (
	secretsTarget = "/run/secrets"
	// secretsBytes bounds a sandbox's secrets, all together, each in pages of its own.
	secretsBytes = 8 << 20
)

func checkSecretFiles(c sandbox.Config) error {
	size := 0
	for name, value := range c.SecretFiles {
		if name == "" || name == "." || name == ".." || filepath.Base(name) != name {
			return fmt.Errorf("sandbox %s: %q can't be the name of a secret's file", c.ID, name)
		}
		size += len(value) + os.Getpagesize()
	}
	if size > secretsBytes {
		return fmt.Errorf("sandbox %s: its secrets have more than %d bytes", c.ID, secretsBytes)
	}
	return nil
}

// placeSecrets makes dir a file system in memory that holds the files, each for the user alone. It goes when it is
// unmounted, and with the machine; no crash leaves it on a disk. Without files there is no dir.
func placeSecrets(dir string, files map[string][]byte, user int) error {
	if len(files) == 0 {
		return nil
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	mount, err := memoryFS(secretsBytes, user)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	for name, value := range files {
		if err := writeSecret(mount, name, value, user); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	// Not read-only here: that is refused while a process that was forked meanwhile still has a descriptor of a file. The
	// sandbox's own mount is.
	return unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// memoryFS makes a tmpfs that is mounted nowhere yet, for one user, kept out of swap where the kernel can (Linux 6.4).
func memoryFS(size int64, user int) (int, error) {
	mount, err := newTmpfs(size, user, true)
	if errors.Is(err, unix.EINVAL) {
		mount, err = newTmpfs(size, user, false)
	}
	if err != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", err)
	}
	return mount, nil
}

func newTmpfs(size int64, user int, noSwap bool) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, option := range [][2]string{
		{"size", strconv.FormatInt(size, 10)}, {"mode", "0500"}, {"uid", strconv.Itoa(user)}, {"gid", strconv.Itoa(user)},
	} {
		err = errors.Join(err, unix.FsconfigSetString(fs, option[0], option[1]))
	}
	if noSwap {
		err = errors.Join(err, unix.FsconfigSetFlag(fs, "noswap"))
	}
	if err := errors.Join(err, unix.FsconfigCreate(fs)); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

func writeSecret(dir int, name string, value []byte, user int) (err error) {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = file.Write(value)
	// The umask may have taken the mode away.
	return errors.Join(err, file.Chown(user, user), file.Chmod(0o400), file.Close())
}
