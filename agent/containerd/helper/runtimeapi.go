package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/mayfly-faas/mayfly/agent/runtimeapi"
)

const (
	agentSocket = "/run/mayfly/agent.sock"
	apiAddress  = "127.0.0.1:9001"
)

// extensionDirs are where external extensions are: in layers, and in the function's package.
func extensionDirs() []string { return []string{"/opt/extensions", "/var/task/extensions"} }

// runRuntimeAPI stands between the agent's frames and processes that speak the Runtime and Extensions APIs. They start when
// the agent says which function it is.
func runRuntimeAPI(argv []string) (int, error) {
	conn, err := net.Dial("unix", agentSocket)
	if err != nil {
		return exitSetup, fmt.Errorf("reach the agent: %w", err)
	}
	listener, err := net.Listen("tcp4", apiAddress)
	if err != nil {
		return exitSetup, fmt.Errorf("serve the Runtime API: %w", err)
	}
	all := newProcesses()
	return runtimeapi.Serve(runtimeapi.Config{
		Agent: conn, Listener: listener, Runtime: "provided", Log: os.Stderr, Extensions: all.extensions, PeakMemory: peakMemory,
		Start: func(env []string, take func([]byte)) (runtimeapi.Process, error) {
			p, err := all.startCaptured(argv, env, take)
			if err != nil {
				return nil, err
			}
			p.forwardSignals()
			return p, nil
		},
	})
}

// extensions finds the external extensions: executables of the directories, the first of a name.
func (ps *processes) extensions() ([]runtimeapi.Extension, error) {
	var all []runtimeapi.Extension
	seen := map[string]bool{}
	for _, dir := range extensionDirs() {
		entries, err := os.ReadDir(dir) // sorted
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for extensions: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() || seen[e.Name()] {
				continue
			}
			seen[e.Name()] = true
			path := filepath.Join(dir, e.Name())
			all = append(all, runtimeapi.Extension{Name: e.Name(), Start: func(env []string, take func([]byte)) (runtimeapi.Process, error) {
				return ps.startCaptured([]string{path}, env, take)
			}})
		}
	}
	return all, nil
}

// startCaptured starts argv; unless take is nil, its output passes through here on its way to the log.
func (ps *processes) startCaptured(argv, env []string, take func([]byte)) (*process, error) {
	env = append(os.Environ(), env...)
	if take == nil {
		return ps.start(argv, env, os.Stdout, nil)
	}
	output, out, err := newCapture(os.Stdout, take)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p, err := ps.start(argv, env, out, output)
	if err != nil {
		output.in.Close()
		return nil, err
	}
	go output.run() // it ends with the last process that has the pipe, or with process 1
	return p, nil
}
