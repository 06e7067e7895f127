//go:build linux

package view

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/thread"
)

// harmless are the attributes of all that is mounted here.
const harmless = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// newTmpfs makes a tmpfs that is mounted nowhere yet.
func newTmpfs() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", err)
	}
	defer unix.Close(fs)
	for key, value := range map[string]string{"source": "usbns", "mode": "0755", "size": "1m", "nr_inodes": "4096"} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, fmt.Errorf("make a tmpfs with %s=%s: %w", key, value, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, harmless)
	if err != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", err)
	}
	return fd, nil
}

// clone makes a mount of what is at path below the directory dir, to be read
// only, without what is mounted below it.
func clone(dir int, path string) (int, error) {
	fd, err := unix.OpenTree(dir, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
			Attr_set: harmless | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE,
		})
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return -1, &os.PathError{Op: "clone", Path: path, Err: err}
	}
	return fd, nil
}

// withDir runs f with a directory of the thread's mount namespace.
func withDir(name string, f func(dir int) error) error {
	dir, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(dir)
	return f(dir)
}

// lookup opens a path beneath dir in which nothing is a link.
func lookup(dir int, path string) (int, error) {
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// mountOn mounts a mount that is mounted nowhere on a path beneath dir.
func mountOn(mount, dir int, path string) error {
	at, err := lookup(dir, path)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	err = unix.MoveMount(mount, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "mount on", Path: path, Err: err}
	}
	return nil
}

// unmount takes off what is on top at a path beneath dir. That nothing is there
// is no error.
func unmount(dir int, path string) error {
	parent, err := lookup(dir, filepath.Dir(path))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := unix.Fchdir(parent); err != nil { // there is no umountat
		return &os.PathError{Op: "chdir", Path: path, Err: err}
	}
	err = unix.Unmount(filepath.Base(path), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	return nil
}

// onThread runs f on a thread that shares no working directory with others and
// ends with f.
func onThread(f func() error) error {
	return thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		return f()
	})
}

// within runs f on a thread in a mount namespace. Before, if not nil, is run
// before it goes there.
func within(namespace *os.File, before, f func() error) error {
	return onThread(func() error {
		if before != nil {
			if err := before(); err != nil {
				return err
			}
		}
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the mount namespace of a container: %w", err)
		}
		return f()
	})
}
