package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MountsBelow lists the mount points at or below dir, the latest first, from the text of a mountinfo file.
func MountsBelow(mountinfo, dir string) []string {
	var points []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if p := unescape(fields[4]); p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	slices.Reverse(points)
	return points
}

// mountinfo writes these four characters as octal.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// Unmount detaches whatever is mounted at or below dir.
func Unmount(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for _, p := range MountsBelow(string(text), dir) {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// ours are the entries that a state or run directory of Mayfly may have at its top.
var ours = []string{"server", "agent", "c", "s", "mayfly.log", "mayfly.pid", "server.pid", "agent.pid"}

// Wipe removes a state or run directory of Mayfly with all that is in it. It refuses a directory that holds anything else.
func Wipe(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	for _, e := range entries {
		if !slices.Contains(ours, e.Name()) {
			return fmt.Errorf("wipe %s: %s in it is not Mayfly's: is it the right directory? Remove it by hand if so", dir, e.Name())
		}
	}
	// Files below a mount are somebody else's.
	if err := Unmount(dir); err != nil {
		return fmt.Errorf("wipe %s: %w", dir, err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	// The directory itself may be a mount or somebody's choice: it goes only if it can.
	_ = os.Remove(dir)
	return nil
}
