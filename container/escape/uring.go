//go:build linux

package escape

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/io_uring.h.
const (
	uringOpOpenat     = 18
	uringEnterEvents  = 1
	uringOffSQRing    = 0
	uringOffSQEs      = 0x10000000
	uringFeatOneMmap  = 1
	uringRingBytes    = 4096
	uringEntries      = 1
	uringEntryBytes   = 64
	uringCQEResultOff = 8
)

type uringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq                                                   struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

type uringEntry struct {
	opcode, flags   uint8
	priority        uint16
	fd              int32
	offset, address uint64
	length, opFlags uint32
	user            uint64
	_               [3]uint64
}

// nodeUring opens the target's nodes in /dev through a ring.
func (a *attempt) nodeUring() (string, error) {
	var errs error
	for _, n := range a.target().Nodes {
		path := filepath.Join(a.path("/dev"), n.Name)
		fd, err := uringOpen(path)
		if err == nil {
			unix.Close(fd)
			return "opened " + path, nil
		}
		errs = errors.Join(errs, fmt.Errorf("%s through io_uring: %w", path, err))
	}
	return "", brief(errs)
}

func uringOpen(path string) (int, error) {
	var p uringParams
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uringEntries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return -1, fmt.Errorf("io_uring_setup: %w", errno)
	}
	defer unix.Close(int(ring))
	if p.features&uringFeatOneMmap == 0 {
		return -1, errors.New("io_uring is too old")
	}
	rings, err := unix.Mmap(int(ring), uringOffSQRing, uringRingBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return -1, err
	}
	defer unix.Munmap(rings)
	entries, err := unix.Mmap(int(ring), uringOffSQEs, uringEntryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return -1, err
	}
	defer unix.Munmap(entries)

	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	*(*uringEntry)(unsafe.Pointer(&entries[0])) = uringEntry{
		opcode: uringOpOpenat, fd: unix.AT_FDCWD, address: uint64(uintptr(unsafe.Pointer(name))),
		opFlags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY,
	}
	word := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[offset])) }
	*word(p.sq.array) = 0
	atomic.StoreUint32(word(p.sq.tail), 1)
	// A signal, of Go's scheduler for one, ends the wait and not the request.
	for submit := uintptr(1); atomic.LoadUint32(word(p.cq.tail)) == 0; {
		submitted, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, submit, 1, uringEnterEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return -1, fmt.Errorf("io_uring_enter: %w", errno)
		}
		if errno == 0 {
			submit -= submitted
		}
	}
	runtime.KeepAlive(name)
	result := int32(*word(p.cq.cqes + uringCQEResultOff))
	if result < 0 {
		return -1, unix.Errno(-result)
	}
	return int(result), nil
}
