// Command probe is what the tests run in sandboxes: it does one thing and says on standard output what it saw.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	switch os.Args[1] {
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "oom":
		eat()
	case "oom-child":
		// The child dies, its parent doesn't mind.
		_ = exec.Command("/proc/self/exe", "oom").Run()
		fmt.Println("survived")
	case "facts":
		_ = json.NewEncoder(os.Stdout).Encode(facts())
	case "fork":
		fmt.Println(fork())
	case "fill":
		fmt.Println(fill(os.Args[2]))
	case "await":
		await(os.Args[2])
	case "spin":
		end := time.Now().Add(time.Second)
		var threads sync.WaitGroup
		for range 2 {
			threads.Go(func() {
				for time.Now().Before(end) {
					_ = facts
				}
			})
		}
		threads.Wait()
	case "secrets":
		secrets(os.Args[2])
	case "orphan":
		orphan()
	case "parent":
		parent()
	case "reach":
		_ = json.NewEncoder(os.Stdout).Encode(reach(os.Args[2:]))
	case "serve":
		serve(os.Args[2])
	case "spoof":
		fmt.Println(spoof(os.Args[2], os.Args[3]))
	case "echo":
		fmt.Println(strings.Join(os.Args[2:], " "))
		fmt.Fprintln(os.Stderr, "to standard error")
	}
}

// eat touches memory until something ends it.
func eat() {
	var kept [][]byte
	for {
		b := make([]byte, 4<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
		_ = kept
	}
}

// secrets tells what is in a directory, and whether it can be changed.
func secrets(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		fmt.Println(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		st, _ := os.Stat(path)
		text, err := os.ReadFile(path)
		fmt.Println(e.Name(), st.Mode(), string(text), err)
		fmt.Println(errors.Is(os.Remove(path), syscall.EROFS), errors.Is(os.Chmod(path, 0o777), syscall.EROFS))
	}
	fmt.Println(errors.Is(os.WriteFile(filepath.Join(dir, "new"), nil, 0o600), syscall.EROFS))
}

// fork counts the children that could be started at once.
func fork() int {
	var children []*exec.Cmd
	for range 1000 {
		c := exec.Command("/proc/self/exe", "sleep")
		if c.Start() != nil {
			break
		}
		children = append(children, c)
	}
	for _, c := range children {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	return len(children)
}

// fill counts the bytes that fit into a file.
func fill(path string) int64 {
	f, err := os.Create(path)
	if err != nil {
		fmt.Println(err)
		return -1
	}
	block, total := make([]byte, 1<<20), int64(0)
	for total < 2<<30 {
		n, err := f.Write(block)
		total += int64(n)
		if err != nil {
			break
		}
	}
	return total
}

func await(path string) {
	for {
		b, err := os.ReadFile(path)
		if err == nil {
			werr := os.WriteFile(path, []byte("changed"), 0o644)
			fmt.Printf("%s|%v\n", b, errors.Is(werr, syscall.EROFS))
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// orphan makes a process whose parent ends at once, and waits until process 1 has reaped it.
func orphan() {
	out, _ := exec.Command("/proc/self/exe", "parent").Output()
	for {
		if _, err := os.Stat("/proc/" + strings.TrimSpace(string(out))); err != nil {
			fmt.Println("reaped")
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func parent() {
	child := exec.Command("/proc/self/exe", "exit", "0")
	_ = child.Start()
	fmt.Println(child.Process.Pid)
}

func facts() map[string]any {
	f := map[string]any{
		"uid": os.Getuid(), "gid": os.Getgid(), "pid": os.Getpid(), "ppid": os.Getppid(),
		"env": os.Environ(), "status": status("self"), "init": status("1"), "interfaces": interfaces(), "processes": processes(),
	}
	f["hostname"], _ = os.Hostname()
	f["cwd"], _ = os.Getwd()
	for name, path := range map[string]string{"uid_map": "/proc/self/uid_map", "mounts": "/proc/self/mounts", "cgroup": "/proc/self/cgroup"} {
		b, _ := os.ReadFile(path)
		f[name] = string(b)
	}
	errs := map[string]string{}
	for name, try := range attempts() {
		errs[name] = fmt.Sprint(try())
	}
	f["attempts"] = errs
	f["outside"] = outside()
	return f
}

func status(pid string) map[string]string {
	b, _ := os.ReadFile("/proc/" + pid + "/status")
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && (strings.HasPrefix(k, "Cap") || k == "Seccomp" || k == "NoNewPrivs") {
			out[k] = strings.TrimSpace(v)
		}
	}
	return out
}

func interfaces() (names []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		names = append(names, fmt.Sprintf("%s up=%v", i.Name, i.Flags&net.FlagUp != 0))
	}
	return names
}

func processes() (pids []string) {
	found, _ := filepath.Glob("/proc/[0-9]*")
	return append(pids, found...)
}

// outside walks everything but /proc for files of the host.
func outside() (found []string) {
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if path == "/proc" {
			return fs.SkipDir
		}
		if err == nil && !d.IsDir() {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// attempts are things that must fail, but for those whose name says otherwise.
func attempts() map[string]func() error {
	sys := func(nr, a, b, c uintptr) func() error {
		return func() error {
			if _, _, e := syscall.Syscall(nr, a, b, c); e != 0 {
				return e
			}
			return nil
		}
	}
	root := []byte("/\x00")
	return map[string]func() error{
		"write root":    func() error { return os.WriteFile("/x", nil, 0o644) },
		"write code":    func() error { return os.WriteFile("/var/task/x", nil, 0o644) },
		"write helper":  func() error { return os.WriteFile("/run/mayfly-helper/init", nil, 0o644) },
		"write sockets": func() error { return os.WriteFile("/run/mayfly/x", nil, 0o644) },
		"write sysctl":  func() error { return os.WriteFile("/proc/sys/kernel/core_pattern", []byte("x"), 0o644) },
		"read kcore": func() error {
			b, err := os.ReadFile("/proc/kcore")
			if err == nil && len(b) == 0 {
				return errors.New("masked")
			}
			return err
		},
		"look into 1":   func() error { _, err := os.ReadFile("/proc/1/environ"); return err },
		"become root":   func() error { return syscall.Setuid(0) },
		"unshare":       sys(syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER, 0, 0),
		"clone ns":      sys(syscall.SYS_CLONE, syscall.CLONE_NEWUSER|uintptr(syscall.SIGCHLD), 0, 0),
		"clone3":        sys(435, 0, 0, 0),
		"mount":         sys(syscall.SYS_MOUNT, uintptr(unsafe.Pointer(&root[0])), uintptr(unsafe.Pointer(&root[0])), 0),
		"ptrace":        sys(syscall.SYS_PTRACE, 0, 0, 0),
		"bpf":           sys(321, 0, 0, 0),
		"keyctl":        sys(250, 0, 0, 0),
		"io_uring":      sys(425, 1, 0, 0),
		"vsock":         sys(syscall.SYS_SOCKET, 40, 1, 0),
		"raw socket":    sys(syscall.SYS_SOCKET, syscall.AF_INET, syscall.SOCK_RAW, 1),
		"future call":   sys(4000, 0, 0, 0),
		"reach outside": func() error { _, err := net.DialTimeout("tcp", "192.0.2.1:80", time.Second); return err },
		"mknod":         func() error { return syscall.Mknod("/tmp/null", syscall.S_IFCHR|0o666, 1<<8|3) },
		"may write tmp": func() error { return os.WriteFile("/tmp/x", []byte("x"), 0o644) },
		"may write shm": func() error { return os.WriteFile("/dev/shm/x", []byte("x"), 0o644) },
		"may use null":  func() error { return os.WriteFile("/dev/null", []byte("x"), 0o644) },
		"may listen": func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				err = l.Close()
			}
			return err
		},
	}
}
