// Command helper is process 1 of every sandbox: it shuts itself in (seccomp), starts the function's process, reaps,
// forwards signals and exits as that process did.
//
//	init exec -- CMD ARGS...         CMD speaks frames with the agent itself
//	init runtime-api -- CMD ARGS...  CMD speaks the Lambda Runtime API; the helper translates
//	init netns                       brings up lo in a new network namespace and waits for the end of its input
//
// What belongs here: being process 1, and the set-up that only a process inside can do. What does not: the Runtime
// API itself (agent/runtimeapi), and everything that the host can do (agent/containerd). It is small and starts
// fast because every cold start waits for it.
package main

import (
	"fmt"
	"os"
)

// exitSetup is the exit status when the sandbox could not be set up: nothing of the function ran.
const exitSetup = 125

func main() {
	status, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "mayfly-init:", err)
	}
	os.Exit(status)
}

func run(args []string) (int, error) {
	if len(args) == 1 && args[0] == "netns" {
		return netns()
	}
	if len(args) < 3 || args[1] != "--" {
		return exitSetup, fmt.Errorf("usage: init exec|runtime-api -- CMD ARGS..., not %q", args)
	}
	if err := enter(); err != nil {
		return exitSetup, err
	}
	switch args[0] {
	case "exec":
		return runExec(args[2:])
	case "runtime-api":
		return runRuntimeAPI(args[2:])
	}
	return exitSetup, fmt.Errorf("unknown mode %q", args[0])
}
