package containerd

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

const (
	// specVersion is one that runtimes of 2021 take too; nothing newer is used.
	specVersion = "1.0.2"
	// sandboxUID is the user and group of functions inside a sandbox.
	sandboxUID = 1000

	helperDir = "/run/mayfly-helper"
	socketDir = "/run/mayfly"
	codeDir   = "/var/task"

	resolvConfPath = "/etc/resolv.conf"

	minShares   = 2    // the kernel takes no less
	maxFiles    = 1024 // as in Lambda
	smallTmpfs  = "size=1m,mode=755"
	sharedTmpfs = "size=64m,mode=1777"
)

// layout is where the parts of a sandbox are on the host.
type layout struct {
	helper, task, tmp  string
	hosts              string
	secrets            string
	userNS, networkNS  string
	uid                uint32
	cgroup             string
	limitSwap          bool
	taskOpts, helpOpts []string
	confOpts           []string
	// readMappings leaves the mappings of ids to be read from userNS.
	readMappings bool
	// slot is that of its interface, and resolvConf its resolv.conf on the host; 0 and "" without.
	slot       int
	resolvConf string
}

// buildSpec is the OCI spec of a sandbox, made by hand: containerd's helpers cost milliseconds.
func buildSpec(c sandbox.Config, l layout) *specs.Spec {
	return &specs.Spec{
		Version:  specVersion,
		Hostname: "sandbox",
		Root:     &specs.Root{Path: c.RootFS, Readonly: true},
		Process:  process(c),
		Mounts:   mounts(c, l),
		Linux:    linux(c, l),
	}
}

func process(c sandbox.Config) *specs.Process {
	return &specs.Process{
		User: specs.User{UID: sandboxUID, GID: sandboxUID, Umask: new(uint32(0o022))},
		Args: slices.Concat([]string{helperDir + "/" + helperName}, helperArgs(c.Command)),
		Env:  slices.Concat([]string{"PATH=/usr/local/bin:/usr/bin:/bin"}, c.Env),
		Cwd:  codeDir,
		// Empty sets, so that there is nothing to gain; a nil one would mean the runtime's default.
		Capabilities:    &specs.LinuxCapabilities{},
		NoNewPrivileges: true,
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Hard: maxFiles, Soft: maxFiles},
			{Type: "RLIMIT_CORE"},
		},
	}
}

// helperArgs are the helper's arguments. A command may name the helper's mode ("exec", "runtime-api") and "--" before
// the program; without, it is exec.
func helperArgs(command []string) []string {
	if len(command) > 0 && command[0] == helperDir+"/"+helperName {
		command = command[1:]
	}
	if len(command) > 1 && command[1] == "--" && !strings.HasPrefix(command[0], "/") {
		return command
	}
	return slices.Concat([]string{"exec", "--"}, command)
}

// mounts has no /sys: nothing in a sandbox needs it, and a good part of the kernel is behind it.
func mounts(c sandbox.Config, l layout) []specs.Mount {
	bind := func(source, target string, options ...string) specs.Mount {
		return specs.Mount{Source: source, Destination: target, Type: "bind", Options: append([]string{"bind", "nosuid", "nodev"}, options...)}
	}
	tmpfs := func(target, size string, options ...string) specs.Mount {
		return specs.Mount{
			Source: "tmpfs", Destination: target, Type: "tmpfs",
			Options: append([]string{"nosuid"}, append(options, strings.Split(size, ",")...)...),
		}
	}
	all := []specs.Mount{
		{Source: "proc", Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", smallTmpfs, "noexec", "strictatime"),
		tmpfs("/dev/shm", sharedTmpfs, "noexec", "nodev"),
		tmpfs("/run", smallTmpfs, "noexec", "nodev"),
		bind(c.SocketDir, socketDir, "ro", "noexec"),
		bind(l.hosts, "/etc/hosts", "ro", "noexec"),
		bind(l.helper, helperDir, append(l.helpOpts, "ro")...),
		// rslave: what the host mounts there later appears inside.
		bind(l.task, codeDir, append(l.taskOpts, "ro", "rslave")...),
		bind(l.tmp, "/tmp"),
	}
	if len(c.SecretFiles) > 0 {
		all = append(all, bind(l.secrets, secretsTarget, "ro", "noexec"))
	}
	if l.resolvConf != "" {
		all = append(all, bind(l.resolvConf, resolvConfPath, append(l.confOpts, "ro")...))
	}
	return all
}

func linux(c sandbox.Config, l layout) *specs.Linux {
	var ids []specs.LinuxIDMapping
	if !l.readMappings {
		ids = []specs.LinuxIDMapping{{ContainerID: 0, HostID: l.uid, Size: idsPerSandbox}}
	}
	return &specs.Linux{
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.UserNamespace, Path: l.userNS},
			{Type: specs.NetworkNamespace, Path: l.networkNS},
			{Type: specs.PIDNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.CgroupNamespace},
		},
		UIDMappings:       ids,
		GIDMappings:       ids,
		CgroupsPath:       l.cgroup,
		Resources:         resources(c, l.limitSwap),
		RootfsPropagation: "rslave",
		MaskedPaths: []string{
			"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
}

// cpu shares the machine in proportion to milliCPUs when sandboxes compete; what is idle may be used
// (docs/adr/0009-cpu-by-weight.md).
func cpu(milliCPUs int32) *specs.LinuxCPU {
	return &specs.LinuxCPU{Shares: new(max(uint64(milliCPUs)*1024/1000, minShares))}
}

func resources(c sandbox.Config, limitSwap bool) *specs.LinuxResources {
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Pids:    &specs.LinuxPids{Limit: new(c.PIDs)},
		Memory:  &specs.LinuxMemory{Limit: new(c.MemoryBytes)},
		CPU:     cpu(c.MilliCPUs),
	}
	if limitSwap {
		r.Memory.Swap = new(c.MemoryBytes) // memory and swap together: no swap
	}
	return r
}

// taskDir, tmpDir and secretsDir are a sandbox's directories on the host, below its own.
func taskDir(dir string) string    { return filepath.Join(dir, "task") }
func tmpDir(dir string) string     { return filepath.Join(dir, "tmp") }
func secretsDir(dir string) string { return filepath.Join(dir, "secrets") }
