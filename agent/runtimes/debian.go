package runtimes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"golang.org/x/sys/unix"
)

// keepLines of mmdebstrap's output go into the error when it fails.
const keepLines = 8

// debootstrap runs mmdebstrap.
type debootstrap struct {
	suite    string
	packages []string
	base     string // URL of the mirror on loopback
	security bool
	settings aptSettings
	keyring  string
	target   string // directory to be made
	tmp      string
	onLine   func(string)
}

// run extracts the packages to d.target. Maintainer scripts don't run: finish does their part.
func (d debootstrap) run(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "mmdebstrap", d.args()...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C", "HOME=/root", "TMPDIR=" + d.tmp,
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(imageTime().Unix(), 10),
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("run mmdebstrap: %w", err)
	}
	cmd.Stdout = nil
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run mmdebstrap: %w", err)
	}
	last := followLines(out, d.onLine)
	if err := cmd.Wait(); err != nil {
		// What is left of its process group would go on writing to the directory that we remove.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("mmdebstrap: %w:\n%s", err, strings.Join(last, "\n"))
	}
	return nil
}

func (d debootstrap) args() []string {
	args := []string{
		"--mode=root", "--variant=extract", "--verbose", "--include=" + strings.Join(d.packages, ","),
		`--aptopt=APT::Sandbox::User "root"`,       // the state directory is private
		`--aptopt=Acquire::http::Timeout "900"`,    // the mirror answers once it has the whole file
		`--aptopt=Acquire::http::Proxy "DIRECT"`,   // the mirror is on loopback
		`--aptopt=Acquire::Languages "none"`,       //
		`--aptopt=APT::Install-Recommends "false"`, //
	}
	for _, o := range d.settings.Options {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, d.suite, d.target)
	line := func(path, suite string) string {
		return fmt.Sprintf("deb [signed-by=%s] %s/%s %s main", d.keyring, d.base, path, suite)
	}
	args = append(args, line("debian", d.suite), line("debian", d.suite+"-updates"))
	if d.security {
		args = append(args, line("security", d.suite+"-security"))
	}
	return args
}

// followLines tells onLine each line of r, and returns the last ones that say what went wrong.
func followLines(r io.Reader, onLine func(string)) []string {
	var last, errs []string
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		if text == "" {
			continue
		}
		onLine(text)
		if last = append(last, text); len(last) > keepLines {
			last = last[1:]
		}
		if strings.HasPrefix(text, "E:") && len(errs) < keepLines {
			errs = append(errs, text)
		}
	}
	_, _ = io.Copy(io.Discard, r) // after an overlong line
	if len(errs) > 0 {
		return errs
	}
	return last
}

// neededBytes reads apt's "Need to get 24.1 MB of archives."; false for other lines.
func neededBytes(line string) (int64, bool) {
	rest, ok := strings.CutPrefix(line, "Need to get ")
	if !ok {
		return 0, false
	}
	f := strings.Fields(rest)
	if len(f) < 2 {
		return 0, false
	}
	n, err := strconv.ParseFloat(strings.ReplaceAll(f[0], ",", ""), 64)
	if err != nil {
		return 0, false
	}
	name, _, _ := strings.Cut(f[1], "/") // "0 B/24.1 MB" when a part is there already
	unit, ok := map[string]float64{"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[name]
	return int64(n * unit), ok
}

// checkRoot: owners in an image and chroot need it.
func checkRoot() error {
	if os.Geteuid() != 0 {
		return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED,
			"building runtime images needs root; run the command with sudo")
	}
	return nil
}

// checkTools says what is missing for a build.
func checkTools() error {
	for _, tool := range []string{"mmdebstrap", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED,
				"building runtime images needs %s, which is not installed; run: apt-get install mmdebstrap debian-archive-keyring", tool)
		}
	}
	return nil
}

// findKeyring returns the file with the keys of Debian's archive.
func findKeyring(dirs ...string) (string, error) {
	for _, dir := range dirs {
		for _, name := range []string{"debian-archive-keyring.gpg", "debian-archive-keyring.pgp"} {
			path := filepath.Join(dir, name)
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
		}
	}
	return "", fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED,
		"building runtime images needs the keys of Debian's archive; run: apt-get install debian-archive-keyring")
}

// isDiskFull also finds what a child process says about it.
func isDiskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), "No space left on device")
}

// syncFS writes the file system of path to the disk.
func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
