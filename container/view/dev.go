//go:build linux

package view

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// ReplaceDev mounts a file system of this process's user namespace on /dev of a
// container that has a user namespace of its own, with all that was in it. On one
// that the container's user namespace owns, nodes cannot be opened, nor can we
// make files. Its owner is rootUID.
func ReplaceDev(namespace *os.File, root string, rootUID uint32) error {
	err := within(namespace, nil, func() error {
		return withDir(root, func(dir int) error { return replaceDev(dir, int(rootUID)) })
	})
	if err != nil {
		return fmt.Errorf("replace /dev: %w", err)
	}
	return nil
}

func replaceDev(root, owner int) error {
	if err := wantType(root, "dev", unix.TMPFS_MAGIC); err != nil {
		return err
	}
	old, err := unix.Openat(root, "dev", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev", Err: err}
	}
	was := os.NewFile(uintptr(old), "/dev")
	defer was.Close()
	names, err := was.Readdirnames(-1)
	if err != nil {
		return err
	}
	mount, err := newTmpfs()
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	err = unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NODEV})
	if err != nil {
		return err
	}
	if err := mountOn(mount, root, "dev"); err != nil {
		return err
	}
	for _, name := range names {
		if err := moveEntry(old, mount, name); err != nil {
			return &os.PathError{Op: "keep", Path: path.Join("/dev", name), Err: err}
		}
	}
	return unix.Fchownat(mount, "", owner, owner, unix.AT_EMPTY_PATH)
}

// moveEntry makes a link again, and mounts anything else on a place of its own.
func moveEntry(from, to int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(from, name, target)
		if err != nil {
			return err
		}
		return unix.Symlinkat(string(target[:n]), to, name)
	case unix.S_IFDIR:
		err = unix.Mkdirat(to, name, 0o755)
	default:
		err = unix.Mknodat(to, name, unix.S_IFREG|0o600, 0)
	}
	if err != nil {
		return err
	}
	tree, err := unix.OpenTree(from, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return mountOn(tree, to, name)
}
