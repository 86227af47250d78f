package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// volumes makes the disk space behind each sandbox's /tmp: a file system in a sparse file, which is what limits its
// size. On hosts without loop devices it is a plain directory without a limit.
type volumes struct {
	dir   string
	loops bool
	pool  *pool[volume] // of the usual size

	mu        sync.Mutex
	templates map[int64]string // by size
}

func openVolumes(dir string, poolSize int, log *slog.Logger) (*volumes, error) {
	v := &volumes{dir: dir, loops: true, templates: map[int64]string{}}
	v.pool = newPool(poolSize, func() (volume, error) { return v.make(defaultTmpBytes) }, volume.close)
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	if err := v.sweep(); err != nil {
		return nil, err
	}
	if err := v.probe(); err != nil {
		v.loops = false
		log.Warn("the size of /tmp in sandboxes is not limited: no file systems in files on this host", slog.Any("error", err))
	}
	return v, nil
}

// sweep removes what a crash left: copies that were not attached yet, and a template half made.
func (v *volumes) sweep() error {
	var errs []error
	for _, pattern := range []string{"volume-*", "*.new"} {
		found, err := filepath.Glob(filepath.Join(v.dir, pattern))
		errs = append(errs, err)
		for _, path := range found {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// volume is a file system that is mounted nowhere yet. It goes with its descriptor.
type volume struct{ mount int }

func (v volume) close() { _ = unix.Close(v.mount) } // nothing was written

// probe makes and drops one volume.
func (v *volumes) probe() error {
	probe, err := v.make(16 << 20)
	if err == nil {
		probe.close()
	}
	return err
}

// place makes an empty volume of size bytes appear at a directory, for the user and group uid alone.
func (v *volumes) place(at, id string, size int64, uid int) error {
	if err := v.attach(at, id, size); err != nil {
		return fmt.Errorf("make /tmp: %w", err)
	}
	if err := os.Chown(at, uid, uid); err != nil {
		return fmt.Errorf("make /tmp: %w", err)
	}
	return os.Chmod(at, 0o700)
}

func (v *volumes) attach(at, id string, size int64) error {
	if !v.loops {
		return v.bindPlain(at, id)
	}
	vol, err := v.get(size)
	if err != nil {
		return err
	}
	defer vol.close()
	return unix.MoveMount(vol.mount, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (v *volumes) get(size int64) (volume, error) {
	if size == defaultTmpBytes {
		return v.pool.get()
	}
	return v.make(size)
}

func (v *volumes) bindPlain(at, id string) error {
	dir := v.plain(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return unix.Mount(dir, at, "", unix.MS_BIND, "")
}

func (v *volumes) plain(id string) string { return filepath.Join(v.dir, id) }

// remove removes a volume whose user is gone.
func (v *volumes) remove(at, id string) error {
	return errors.Join(unmount(at), os.RemoveAll(v.plain(id)))
}

// make makes a copy of the template and its mount. The file has no name any more once it is attached, and the loop
// device goes with the mount: nothing is left after a crash but what is in use.
func (v *volumes) make(size int64) (volume, error) {
	template, err := v.template(size)
	if err != nil {
		return volume{}, err
	}
	file, err := os.CreateTemp(v.dir, "volume-")
	if err != nil {
		return volume{}, err
	}
	defer file.Close()
	defer os.Remove(file.Name()) // the next start removes what stays
	if err := copySparse(file, template); err != nil {
		return volume{}, err
	}
	loop, err := attachLoop(file)
	if err != nil {
		return volume{}, err
	}
	defer loop.Close()
	return mountDetached(loop.Name())
}

func mountDetached(device string) (volume, error) {
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return volume{}, fmt.Errorf("open ext4 (needs Linux 5.2): %w", err)
	}
	defer unix.Close(fs)
	err = errors.Join(
		unix.FsconfigSetString(fs, "source", device),
		unix.FsconfigSetFlag(fs, "nobarrier"),     // nothing in it outlives the machine
		unix.FsconfigSetFlag(fs, "noinit_itable"), // a sparse file is zero already
		unix.FsconfigCreate(fs))
	if err != nil {
		return volume{}, fmt.Errorf("mount %s: %w", device, err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return volume{}, fmt.Errorf("mount %s: %w", device, err)
	}
	return volume{mount}, nil
}

// template is the path of an empty file system of this size, made when first asked for.
func (v *volumes) template(size int64) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if path, ok := v.templates[size]; ok {
		return path, nil
	}
	path := filepath.Join(v.dir, "template-"+strconv.FormatInt(size+overhead(size), 10)+".ext4")
	if !exists(path) { // by an earlier process
		if err := makeTemplate(path, size); err != nil {
			return "", err
		}
	}
	v.templates[size] = path
	return path, nil
}

// overhead is what the file system needs for itself, so that size is what a function can fill.
func overhead(size int64) int64 { return 2<<20 + size/32 }

func makeTemplate(path string, size int64) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mkfs, err := findBinary("mkfs.ext4", "e2fsprogs")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode,uninit_bg", "-I", "128", "-i", "16384",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", tmp, strconv.FormatInt((size+overhead(size))/1024, 10)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", mkfs, err, out)
	}
	return os.Rename(tmp, path)
}

// copySparse copies the parts of a file that hold data: of a new file system some hundred kilobytes.
func copySparse(dst *os.File, path string) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	for at := int64(0); ; {
		begin, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(src.Fd()), begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, begin), io.NewSectionReader(src, begin, at-begin)); err != nil {
			return err
		}
	}
}

// attachLoop makes a loop device of file. The device frees itself when its last user closes it.
func attachLoop(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open a loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close() // another took it between the two calls, or it failed
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach a loop device: %w", err)
		}
	}
}
