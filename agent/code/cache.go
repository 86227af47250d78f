// Package code is an agent's cache of functions' code: deployment packages by digest, verified and unpacked.
//
// What belongs here: fetching, checking and unpacking zips, and what to keep of them. What does not: where the bytes come
// from (Fetcher), and mounting them (agent/containerd).
//
// A package is unpacked into a directory of its own, which is renamed to its final name when it is complete. The
// file "verified" beside the code says that, and in which boot of the machine: what a crash of the machine may have left
// half written is unpacked anew.
package code

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	digestPrefix = "sha256:"
	rootName     = "root"
	markName     = "verified"
	temporary    = "tmp-"
	bootIDFile   = "/proc/sys/kernel/random/boot_id"
)

// Fetcher brings the bytes of a digest.
type Fetcher func(ctx context.Context, digest string) (io.ReadCloser, error)

// Config is what a Cache needs.
type Config struct {
	Dir    string
	Fetch  Fetcher
	Logger *slog.Logger
	// Budget is how many unpacked bytes are kept: 10 GiB if it is 0. What is in use is kept whatever its size.
	Budget int64
	// BootID changes with every boot of the machine; empty: the kernel's.
	BootID string
}

// Cache is the code on one node. Make it with Open.
type Cache struct {
	cfg Config

	mu      sync.Mutex
	entries map[string]*entry
	order   *list.List // of *entry that nobody uses, the longest unused first
	bytes   int64
}

// entry is a package that is there or being fetched.
type entry struct {
	digest string
	size   int64         // unpacked
	ready  chan struct{} // closed when it is there, or err is set
	err    error
	users  int
	idle   *list.Element
}

// Ref is a package in use: it isn't evicted before Release.
type Ref struct {
	// Dir is the directory of the unpacked code.
	Dir string

	cache *Cache
	entry *entry
	once  sync.Once
}

// Release ends the use.
func (r *Ref) Release() { r.once.Do(func() { r.cache.release(r.entry) }) }

// Open takes over what an earlier process left in cfg.Dir, as far as it is whole.
func Open(cfg Config) (*Cache, error) {
	if cfg.Budget == 0 {
		cfg.Budget = 10 << 30
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.BootID == "" {
		id, err := os.ReadFile(bootIDFile)
		if err != nil {
			return nil, fmt.Errorf("read boot id: %w", err)
		}
		cfg.BootID = strings.TrimSpace(string(id))
	}
	c := &Cache{cfg: cfg, entries: map[string]*entry{}, order: list.New()}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil { // sandboxes' users pass through it
		return nil, fmt.Errorf("make code directory: %w", err)
	}
	dirs, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("read code directory: %w", err)
	}
	for _, d := range dirs {
		if err := c.adopt(d.Name()); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// adopt keeps a directory that is verified, and removes any other.
func (c *Cache) adopt(name string) error {
	dir := filepath.Join(c.cfg.Dir, name)
	mark, err := os.ReadFile(filepath.Join(dir, markName))
	boot, size, ok := strings.Cut(string(mark), " ")
	n, numberErr := strconv.ParseInt(size, 10, 64)
	if err != nil || !ok || numberErr != nil || boot != c.cfg.BootID || strings.HasPrefix(name, temporary) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove incomplete code: %w", err)
		}
		return nil
	}
	e := &entry{digest: digestPrefix + name, size: n, ready: make(chan struct{})}
	close(e.ready)
	c.entries[e.digest] = e
	e.idle = c.order.PushBack(e)
	c.bytes += n
	return nil
}

// Acquire returns the code of a digest, which it fetches, checks and unpacks if it isn't there. Concurrent calls for one digest
// share the work; if the one that does it gives up, another takes over. A package that is no usable one gives INVALID_CODE or CODE_TOO_LARGE.
func (c *Cache) Acquire(ctx context.Context, digest string) (*Ref, error) {
	if !validDigest(digest) {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "code digest %q: want sha256: and 64 hexadecimal digits", digest)
	}
	for {
		e, mine := c.use(digest)
		if mine {
			e.size, e.err = c.fill(ctx, digest)
			c.filled(e)
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			c.release(e)
			return nil, ctx.Err()
		}
		if e.err == nil {
			return &Ref{Dir: filepath.Join(c.dir(digest), rootName), cache: c, entry: e}, nil
		}
		// The one that fetched gave up; that is no reason for the others to.
		if mine || (!errors.Is(e.err, context.Canceled) && !errors.Is(e.err, context.DeadlineExceeded)) {
			return nil, e.err
		}
	}
}

func validDigest(digest string) bool {
	h, ok := strings.CutPrefix(digest, digestPrefix)
	raw, err := hex.DecodeString(h)
	return ok && err == nil && len(raw) == sha256.Size && h == strings.ToLower(h)
}

func (c *Cache) dir(digest string) string {
	return filepath.Join(c.cfg.Dir, strings.TrimPrefix(digest, digestPrefix))
}

// use counts a user of a digest; mine tells that the caller has to fetch it.
func (c *Cache) use(digest string) (e *entry, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[digest]
	if !ok {
		e = &entry{digest: digest, ready: make(chan struct{})}
		c.entries[digest] = e
	}
	e.users++
	if e.idle != nil {
		c.order.Remove(e.idle)
		e.idle = nil
	}
	return e, !ok
}

// filled makes an entry's result known; a failed one is forgotten.
func (c *Cache) filled(e *entry) {
	c.mu.Lock()
	if e.err != nil {
		delete(c.entries, e.digest)
	} else {
		c.bytes += e.size
	}
	doomed := c.evict()
	c.mu.Unlock()
	close(e.ready)
	c.remove(doomed)
}

func (c *Cache) release(e *entry) {
	c.mu.Lock()
	e.users--
	if e.users == 0 && c.entries[e.digest] == e {
		e.idle = c.order.PushBack(e)
	}
	doomed := c.evict()
	c.mu.Unlock()
	c.remove(doomed)
}

// evict takes unused entries out until the rest is within the budget; their directories have new names then,
// so that a digest may be fetched again at once. The lock is held.
func (c *Cache) evict() []string {
	var doomed []string
	for c.bytes > c.cfg.Budget && c.order.Len() > 0 {
		e := c.order.Remove(c.order.Front()).(*entry) // the list's only type
		e.idle = nil
		delete(c.entries, e.digest)
		c.bytes -= e.size
		grave, err := os.MkdirTemp(c.cfg.Dir, temporary)
		if err == nil {
			err = os.Rename(c.dir(e.digest), filepath.Join(grave, rootName))
		}
		if err != nil {
			c.cfg.Logger.Error("can't evict code", "digest", e.digest, "error", err)
			continue
		}
		doomed = append(doomed, grave)
	}
	return doomed
}

func (c *Cache) remove(dirs []string) {
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			c.cfg.Logger.Error("can't remove evicted code", "dir", dir, "error", err)
		}
	}
}

// Bytes is the size of what is there, unpacked.
func (c *Cache) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// fill fetches, checks and unpacks a package, and returns its unpacked size.
func (c *Cache) fill(ctx context.Context, digest string) (int64, error) {
	work, err := os.MkdirTemp(c.cfg.Dir, temporary)
	if err != nil {
		return 0, fault.Internal(err, "can't make a directory for code %s", digest)
	}
	defer os.RemoveAll(work)
	zipFile, err := c.download(ctx, digest, filepath.Join(work, "zip"))
	if err != nil {
		return 0, err
	}
	defer zipFile.Close()
	done := filepath.Join(work, "done")
	size, err := unpack(ctx, zipFile, filepath.Join(done, rootName))
	if err != nil {
		return 0, err
	}
	mark := []byte(c.cfg.BootID + " " + strconv.FormatInt(size, 10))
	if err := os.WriteFile(filepath.Join(done, markName), mark, 0o600); err != nil {
		return 0, fault.Internal(err, "can't finish code %s", digest)
	}
	if err := os.RemoveAll(c.dir(digest)); err != nil { // left by a failed eviction
		return 0, fault.Internal(err, "can't finish code %s", digest)
	}
	if err := os.Rename(done, c.dir(digest)); err != nil {
		return 0, fault.Internal(err, "can't finish code %s", digest)
	}
	return size, nil
}

// download writes the package to path and checks its digest.
func (c *Cache) download(ctx context.Context, digest, path string) (*os.File, error) {
	in, err := c.cfg.Fetch(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("fetch code: %w", err)
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		return nil, fault.Internal(err, "can't store code %s", digest)
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), in); err != nil {
		return nil, errors.Join(fmt.Errorf("fetch code: %w", err), out.Close())
	}
	if got := digestPrefix + hex.EncodeToString(sum.Sum(nil)); got != digest {
		return nil, errors.Join(fault.New(codes.DataLoss, mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE,
			"code %s arrived with digest %s", digest, got), out.Close())
	}
	return out, nil
}
