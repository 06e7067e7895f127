//go:build linux

package escape

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// open opens a file by its handle on the file system that the file at is on.
func (h Handle) open(at string, flags int) (int, error) {
	if h.Bytes == nil {
		return -1, errors.New("no handle is known")
	}
	mount, err := openMount(at)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	fd, err := h.openOn(mount, flags)
	if err != nil {
		return -1, fmt.Errorf("open_by_handle_at from %s: %w", at, err)
	}
	return fd, nil
}

// openMount opens a file to have its file system.
func openMount(at string) (int, error) {
	fd, err := unix.Open(at, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", at, err)
	}
	return fd, nil
}

// openOn opens a file by its handle on the file system of mount.
func (h Handle) openOn(mount, flags int) (int, error) {
	return unix.OpenByHandleAt(mount, unix.NewFileHandle(h.Type, h.Bytes), flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY)
}

// onEach does something on every mount of a type.
func onEach(fstype string, do func(point string) (string, error)) (string, error) {
	points, err := mountPoints()
	if err != nil {
		return "", err
	}
	var errs error
	for _, point := range points {
		if point.fstype != fstype && !strings.HasPrefix(point.fstype, fstype+".") {
			continue
		}
		evidence, err := do(point.path)
		if err == nil {
			return evidence, nil
		}
		errs = errors.Join(errs, err)
	}
	if errs == nil {
		return "", fmt.Errorf("no %s is mounted", fstype)
	}
	return "", brief(errs)
}

func (a *attempt) nodeHandle() (string, error) {
	return onEach("devtmpfs", func(point string) (string, error) {
		var errs error
		for _, n := range a.target().Nodes {
			fd, err := n.Handle.open(point, unix.O_RDONLY)
			if err == nil {
				unix.Close(fd)
				return fmt.Sprintf("opened %s from %s", n.Name, point), nil
			}
			errs = errors.Join(errs, err)
		}
		return "", brief(errs)
	})
}

func (a *attempt) cgroupHandle() (string, error) {
	return onEach("cgroup2", func(point string) (string, error) {
		fd, err := a.target().CgroupHandle.open(point, unix.O_DIRECTORY)
		if err != nil {
			return "", err
		}
		unix.Close(fd)
		return fmt.Sprintf("opened the cgroup %s from %s", a.target().Cgroup, point), nil
	})
}

// fuseNumber takes numbers that use all of 64 bits for random ones.
func (a *attempt) fuseNumber() (string, error) {
	return onEach("fuse", func(point string) (string, error) {
		h, err := HandleOf(point)
		if err != nil {
			return "", err
		}
		if len(h.Bytes) < 8 {
			return "", fmt.Errorf("handle of %s: %x", point, h.Bytes)
		}
		number := uint64(binary.NativeEndian.Uint32(h.Bytes))<<32 | uint64(binary.NativeEndian.Uint32(h.Bytes[4:]))
		if number>>40 != 0 || number == 1 { // the root is always 1
			return "", fmt.Errorf("the number of %s looks random", point)
		}
		return fmt.Sprintf("the number of %s is %#x", point, number), nil
	})
}

// fuseHandle guesses the numbers of files.
func (a *attempt) fuseHandle() (string, error) { return onEach("fuse", a.guessInFuse) }

func (a *attempt) guessInFuse(point string) (string, error) {
	mount, err := openMount(point)
	if err != nil {
		return "", err
	}
	defer unix.Close(mount)
	buf := make([]byte, 4096)
	var last error
	for number := range guesses {
		// FILEID_INO64_GEN of include/linux/exportfs.h: the halves of the number,
		// and a generation.
		h := Handle{Type: 0x81, Bytes: make([]byte, 12)}
		binary.NativeEndian.PutUint32(h.Bytes, uint32(number>>32))
		binary.NativeEndian.PutUint32(h.Bytes[4:], uint32(number))
		fd, err := h.openOn(mount, unix.O_RDONLY)
		if errors.Is(err, unix.EPERM) {
			return "", fmt.Errorf("open_by_handle_at from %s: %w", point, err) // whatever the number
		}
		if err != nil {
			last = err
			continue
		}
		n, _ := unix.Read(fd, buf) // of a directory it fails
		unix.Close(fd)
		text := string(buf[:max(n, 0)])
		if a.target().named(text) != "" || hasPath(text, a.target().BusID) {
			return fmt.Sprintf("file %#x of %s tells", number, point), nil
		}
	}
	return "", fmt.Errorf("no file opens by its number and tells: %w", last)
}

// guesses are small numbers, and what counts controllers and files in bytes.
func guesses(yield func(uint64) bool) {
	for number := range uint64(256) {
		if !yield(number) {
			return
		}
	}
	for serial := range uint64(16) {
		for index := range uint64(16) {
			for kind := range uint64(9) {
				if !yield(serial<<24 | index<<8 | kind) {
					return
				}
			}
		}
	}
}
