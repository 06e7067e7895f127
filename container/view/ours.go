//go:build linux

package view

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inDev runs f with the directory of a name below the container's /dev, which it
// makes if need be. A container that may mount can have bound there what is the
// host's: nothing is made or removed in that.
func inDev(dev *os.Root, name string, f func(dir int, base string) error) error {
	dir, err := ownDir(dev, path.Dir(name))
	if err != nil {
		return &os.PathError{Op: "use", Path: "/dev/" + path.Dir(name), Err: err}
	}
	defer unix.Close(dir)
	if err := f(dir, path.Base(name)); err != nil {
		return &os.PathError{Op: "make or remove", Path: "/dev/" + name, Err: err}
	}
	return nil
}

// ownDir opens a directory below dev, which it makes if need be, and with it those
// above. It follows no links.
func ownDir(dev *os.Root, name string) (int, error) {
	top, err := dev.Open(".")
	if err != nil {
		return -1, err
	}
	defer top.Close()
	how := &unix.OpenHow{
		Flags:   unix.O_DIRECTORY | unix.O_RDONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	at, err := unix.Openat2(int(top.Fd()), ".", how)
	for _, part := range strings.Split(name, "/") {
		if err != nil {
			break
		}
		above := at
		if err = unix.Mkdirat(above, part, 0o755); err == nil || err == unix.EEXIST {
			at, err = unix.Openat2(above, part, how)
		}
		unix.Close(above)
	}
	switch {
	case err == unix.EXDEV:
		return -1, errMounted
	case err != nil:
		return -1, err
	}
	return at, nil
}

var errMounted = errors.New("something is mounted there")

// notMounted tells whether a directory is of the same file system as root.
func notMounted(root *os.Root, dir fs.FileInfo) error {
	top, err := root.Stat(".")
	if err == nil && dir.Sys().(*syscall.Stat_t).Dev != top.Sys().(*syscall.Stat_t).Dev {
		err = errMounted
	}
	return err
}

// give gives what has just been made in a directory to the owner of the nodes,
// but nothing that has been put in its place.
func (v *View) give(dir int, base string, kind uint32) error {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var made, in unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &made), unix.Fstat(dir, &in)); err != nil {
		return err
	}
	if made.Dev != in.Dev || made.Mode&unix.S_IFMT != kind {
		return errMounted
	}
	return unix.Fchownat(fd, "", int(v.cfg.UID), int(v.cfg.GID), unix.AT_EMPTY_PATH)
}

func unlink(dir int, base string) error {
	if err := unix.Unlinkat(dir, base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// removeDev removes what devLink or mknod made, if it is there.
func removeDev(dev *os.Root, name string) error {
	if _, err := dev.Lstat(path.Dir(name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return inDev(dev, name, unlink)
}

// removeLinks removes a link, or a directory with as many below it as depth says,
// of links and sockets. It is not os.RemoveAll: a container that may mount can
// have bound there a directory of the host's.
func removeLinks(in *os.Root, name string, depth int) error {
	info, err := in.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&(fs.ModeSymlink|fs.ModeSocket) != 0:
	case !info.IsDir() || depth == 0:
		return &os.PathError{Op: "remove", Path: name, Err: errors.New("it is not of ours")}
	default:
		dir, err := in.OpenRoot(name)
		if err != nil {
			return err
		}
		defer dir.Close()
		if info, err = dir.Stat("."); err == nil {
			err = notMounted(in, info)
		}
		if err != nil {
			return &os.PathError{Op: "remove", Path: name, Err: err}
		}
		names, err := readDir(dir, ".")
		errs := []error{err}
		for _, n := range names {
			errs = append(errs, removeLinks(dir, n, depth-1))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return removeIfThere(in, name)
}
