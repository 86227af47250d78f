package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hosts are the names that every sandbox knows; Lambda's extensions listen at sandbox.localdomain.
const hosts = "127.0.0.1\tlocalhost\n127.0.0.1\tsandbox.localdomain sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"

func hostsFile(cfg Config) string { return filepath.Join(cfg.StateDir, "hosts") }

// writeHosts leaves the file in its place: sandboxes that live have it mounted.
func writeHosts(path string) error {
	if err := os.WriteFile(path, []byte(hosts), 0o644); err != nil {
		return fmt.Errorf("write the sandboxes' hosts: %w", err)
	}
	return os.Chmod(path, 0o644) // whatever the umask
}

// makeShared makes dir a mount of its own that passes later mounts on to the sandboxes. One that is shared already stays
// as it is: sandboxes that live follow that very mount.
func makeShared(dir string) error {
	m, err := findMount(dir)
	if err != nil || m.shared {
		return err
	}
	if !m.found {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	// Private first: as a peer of its parent it would pass every sandbox's mounts on to the whole host.
	for _, how := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", dir, "", how, ""); err != nil {
			return fmt.Errorf("make %s a shared mount: %w", dir, err)
		}
	}
	return nil
}

// mountPoint is what mountinfo tells of a directory.
type mountPoint struct{ found, shared bool }

func findMount(dir string) (m mountPoint, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		// Fields: id, parent, device, root, mount point, options, then optional ones up to a dash.
		if f := strings.Fields(line); len(f) > 6 && f[4] == dir {
			m = mountPoint{found: true, shared: strings.HasPrefix(f[6], "shared:")}
		}
	}
	return m, nil
}

// bindReadOnly makes source appear at target, read-only from the first moment: a later read-only remount would not
// reach the sandboxes that see target. It needs Linux 5.12.
func bindReadOnly(source, target string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", source, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make %s read-only (needs Linux 5.12): %w", source, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	return nil
}

// unmount takes away all mounts on target; none is no error.
func unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

// lockedOptions are the options that a read-only bind of source must repeat: a user namespace may not drop them.
func lockedOptions(source string) ([]string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(source, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", source, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return []string{"noexec"}, nil
	}
	return nil, nil
}
