package debpkg

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// lock keeps other processes from fetching. A wait for them is told once.
func (c *Cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for told := false; ; told = true {
		// A blocking flock could not be cancelled.
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !told {
			c.logf("waiting for another process that fetches Debian packages")
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// fetch unpacks t beside its place in the cache and renames it there, unless
// the packages are those of have. The lock is held.
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
	tmp, err := c.scratch()
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	debs, root := filepath.Join(tmp, "debs"), filepath.Join(tmp, "root")
	if err := c.download(ctx, apt, t.Name, debs, pkgs); err != nil {
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

// scratch makes a directory to fetch into, and removes those of processes that
// were killed.
func (c *Cache) scratch() (string, error) {
	const prefix = ".fetch-"
	left, err := filepath.Glob(filepath.Join(c.dir, prefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(c.dir, prefix)
}

func (c *Cache) download(ctx context.Context, apt *apt, name, dir string, pkgs []deb) error {
	var size int64
	for _, p := range pkgs {
		size += p.size
	}
	c.logf("fetching %d Debian packages for %s, %s, into %s", len(pkgs), name, megabytes(size), c.dir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	stop := c.progress(name, dir, size)
	defer stop()
	return apt.download(ctx, dir, pkgs)
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
