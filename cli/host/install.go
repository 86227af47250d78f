package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
)

// policyFile tells Debian's maintainer scripts whether they may start services. The containerd that a package brings
// must not be started: Mayfly runs its own.
const policyFile = "/usr/sbin/policy-rc.d"

const noServices = "#!/bin/sh\n# Made by mayfly doctor --install for as long as apt-get runs: start no service.\nexit 101\n"

// PackagesFor are the packages that mend what results say is missing, each once.
func PackagesFor(results []Result) []string {
	var packages []string
	for _, r := range results {
		if r.Status != OK {
			packages = append(packages, r.Packages...)
		}
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

// Install installs Debian packages without asking, and starts no service of theirs. What apt-get says goes to out.
func Install(ctx context.Context, packages []string, out io.Writer) (err error) {
	if len(packages) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("there is no apt-get: install by hand what is missing (Debian and Ubuntu are supported)")
	}
	restore, err := holdServices(policyFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	if err := apt(ctx, out, "update"); err != nil {
		// Lists that are there already may do: the install tells.
		fmt.Fprintf(out, "apt-get update failed: %v\n", err)
	}
	args := append([]string{"install", "--yes", "--no-install-recommends", "--no-upgrade"}, packages...)
	if err := apt(ctx, out, args...); err != nil {
		return fmt.Errorf("install %v: %w", packages, err)
	}
	return nil
}

func apt(ctx context.Context, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "Dpkg::Use-Pty=0"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Run()
}

// holdServices keeps maintainer scripts from starting services, unless the host has a policy of its own.
func holdServices(path string) (restore func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keep services from starting: %w", err)
	}
	_, err = f.WriteString(noServices)
	// The umask may have taken the executable bits.
	if err = errors.Join(err, f.Chmod(0o755), f.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("keep services from starting: %w", err), os.Remove(path))
	}
	return func() error { return os.Remove(path) }, nil
}
