package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A cpio writes an archive in the newc format, see
// Documentation/driver-api/early-userspace/buffer-format.rst in the kernel.
type cpio struct {
	w     io.Writer
	inode int
	dirs  map[string]bool
}

func newCPIO(w io.Writer) *cpio { return &cpio{w: w, dirs: map[string]bool{"": true, ".": true}} }

// file adds one, and the directories above it.
func (c *cpio) file(name string, perm fs.FileMode, data []byte) error {
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, 0o100000|uint32(perm.Perm()), data)
}

func (c *cpio) dir(name string) error {
	if c.dirs[name] {
		return nil
	}
	c.dirs[name] = true
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, 0o40755, nil)
}

func (c *cpio) close() error { return c.entry("TRAILER!!!", 0, nil) }

func (c *cpio) entry(name string, mode uint32, data []byte) error {
	c.inode++
	head := fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	for _, part := range [][]byte{head, data} {
		if _, err := c.w.Write(part); err != nil {
			return err
		}
		if pad := -len(part) & 3; pad != 0 {
			if _, err := c.w.Write(make([]byte, pad)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tree adds what is at src, a file or a directory, as name. Symlinks on the way
// are followed for src itself and kept below it.
func (c *cpio) tree(name, src string) error {
	root, err := filepath.EvalSymlinks(src)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := path.Join(name, filepath.ToSlash(strings.TrimPrefix(file, root)))
		switch d.Type() {
		case fs.ModeDir:
			return c.dir(dst)
		case fs.ModeSymlink:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			if err := c.dir(path.Dir(dst)); err != nil {
				return err
			}
			return c.entry(dst, 0o120777, []byte(target))
		case 0:
			info, err := d.Info()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return c.file(dst, info.Mode(), data)
		default:
			return fmt.Errorf("%s is neither a file nor a directory nor a symlink", file)
		}
	})
}
