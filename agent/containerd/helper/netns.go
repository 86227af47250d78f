package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// netns brings up lo, says so with one byte, and keeps the namespaces alive until the agent holds them itself.
func netns() (int, error) {
	if err := linkUp("lo"); err != nil {
		return exitSetup, err
	}
	if _, err := os.Stdout.Write([]byte{'\n'}); err != nil {
		return exitSetup, fmt.Errorf("tell that lo is up: %w", err)
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return exitSetup, fmt.Errorf("wait for the agent: %w", err)
	}
	return 0, nil
}

func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("name %s: %w", name, err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}
