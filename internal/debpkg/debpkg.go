package debpkg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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
	// Beside leaves out these packages and all they depend on: for a tree that
	// is laid over one that has them.
	Beside []string `json:",omitempty"`
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

func (c *Cache) logf(format string, args ...any) {
	fmt.Fprintf(c.log, "debpkg: "+format+"\n", args...)
}
