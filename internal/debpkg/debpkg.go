package debpkg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A Tree says what to unpack into one directory. Its value is its identity: a
// tree with another content is another directory of the cache.
type Tree struct {
	// Name tells people which tree it is.
	Name string
	// Packages are unpacked with all they depend on; what they recommend
	// stays out.
	Packages []string
	// Only, where set, keeps the packages whose name matches this path.Match
	// pattern, and drops all others.
	Only string
	// Without drops files, as patterns of tar's --exclude.
	Without []string
}

// A Cache is a directory of trees.
type Cache struct {
	dir string
	log io.Writer
}

// Open gives the user's cache, $XDG_CACHE_HOME/usbns or ~/.cache/usbns. What is
// fetched is told to log, in lines.
func Open(log io.Writer) (*Cache, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("no directory for Debian packages: %w", err)
	}
	return OpenDir(filepath.Join(base, "usbns"), log)
}

// OpenDir is [Open] with a directory of the caller's choice, made if need be.
func OpenDir(dir string, log io.Writer) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return &Cache{dir: dir, log: log}, nil
}

// Has says whether the cache has t.
func (c *Cache) Has(t Tree) bool {
	_, err := os.Stat(c.path(t))
	return err == nil
}

// Path gives the directory of t, and fetches t first if the cache does not have
// it. Nothing but a stat happens if it has.
func (c *Cache) Path(ctx context.Context, t Tree) (string, error) {
	dir := c.path(t)
	if c.Has(t) {
		return dir, nil
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	if c.Has(t) {
		return dir, nil // another process was quicker
	}
	if err := c.fetch(ctx, t, nil); err != nil {
		return "", fmt.Errorf("fetch Debian packages for %s: %w", t.Name, err)
	}
	return dir, nil
}

// Update replaces each tree of which the machine's sources have newer packages
// by now. Programs that run from the old one keep what they have open.
func (c *Cache) Update(ctx context.Context, trees ...Tree) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	for _, t := range trees {
		have, err := readStamp(c.path(t))
		if err != nil {
			return fmt.Errorf("fetch Debian packages for %s: %w", t.Name, err)
		}
		if err := c.fetch(ctx, t, have); err != nil {
			return fmt.Errorf("fetch Debian packages for %s: %w", t.Name, err)
		}
	}
	return nil
}

// Command runs a program of a tree of [Cache.Path] on this machine, with the
// libraries of the tree. The name is the program's path below the tree.
func Command(ctx context.Context, tree, name string, args ...string) *exec.Cmd {
	args = append([]string{
		"--library-path", filepath.Join(tree, "usr/lib/x86_64-linux-gnu"),
		filepath.Join(tree, name),
	}, args...)
	return exec.CommandContext(ctx, filepath.Join(tree, "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), args...)
}

func (c *Cache) path(t Tree) string {
	id, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings only
	}
	sum := sha256.Sum256(id)
	return filepath.Join(c.dir, t.Name+"-"+hex.EncodeToString(sum[:4]))
}

// lock keeps other processes from fetching. A wait for them is told once.
func (c *Cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { f.Close() }, nil
	}
	c.logf("waiting for another process that fetches Debian packages")
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err = <-locked:
	case <-ctx.Done():
		// The lock, if it still comes, goes with the file.
		go func() { <-locked; f.Close() }()
		return nil, ctx.Err()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// fetch unpacks t beside its place in the cache and renames it there, unless
// the packages are those of have.
func (c *Cache) fetch(ctx context.Context, t Tree, have []string) error {
	start := time.Now()
	apt, err := newAPT(c.dir)
	if err != nil {
		return err
	}
	pkgs, err := apt.resolve(ctx, t)
	if err != nil {
		return err
	}
	if slices.Equal(have, stamp(pkgs)) {
		c.logf("%s is up to date", t.Name)
		return nil
	}

	tmp, err := os.MkdirTemp(c.dir, ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	debs, root := filepath.Join(tmp, "debs"), filepath.Join(tmp, "root")
	for _, dir := range []string{debs, root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	var size int64
	for _, p := range pkgs {
		size += p.size
	}
	c.logf("fetching %d Debian packages for %s, %s, into %s", len(pkgs), t.Name, megabytes(size), c.dir)
	stop := c.progress(t.Name, debs, size)
	err = apt.download(ctx, debs, pkgs)
	stop()
	if err != nil {
		return err
	}
	if err := unpack(ctx, root, debs, t.Without); err != nil {
		return err
	}
	if err := writeStamp(root, stamp(pkgs)); err != nil {
		return err
	}
	if err := replace(c.path(t), root, tmp); err != nil {
		return err
	}
	c.logf("%s is ready after %v", t.Name, time.Since(start).Round(100*time.Millisecond))
	return nil
}

// replace puts root at path, and what was there into trash.
func replace(path, root, trash string) error {
	err := os.Rename(path, filepath.Join(trash, "old"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Rename(root, path)
}

// progress tells every few seconds how much is there, until stop is called.
func (c *Cache) progress(name, dir string, size int64) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				c.logf("%s: %s of %s", name, megabytes(diskUsage(dir)), megabytes(size))
			}
		}
	}()
	return func() { close(done); <-ended }
}

func diskUsage(dir string) (n int64) {
	// Files come and go below apt: what cannot be read does not count.
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func (c *Cache) logf(format string, args ...any) {
	fmt.Fprintf(c.log, "debpkg: "+format+"\n", args...)
}
