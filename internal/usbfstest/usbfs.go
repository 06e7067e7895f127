//go:build linux

package usbfstest

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/usb"
)

// The ioctls of include/uapi/linux/usbdevice_fs.h, on 64-bit machines.
const (
	ioctlSetInterface     = 0x80085504
	ioctlSetConfiguration = 0x80045505
	ioctlSubmit           = 0x8038550a
	ioctlDiscard          = 0x550b
	ioctlReapNoDelay      = 0x4008550d
	ioctlClaim            = 0x8004550f
	ioctlRelease          = 0x80045510
	ioctlReset            = 0x5514
	ioctlClearHalt        = 0x80045515
	ioctlGetSpeed         = 0x551f
)

// The types of struct usbdevfs_urb.
var urbTypes = map[usb.TransferType]uint8{usb.Isochronous: 0, usb.Interrupt: 1, usb.Control: 2, usb.Bulk: 3}

// maxPackets is what usbfs takes of an isochronous transfer.
const maxPackets = 128

// An urb is struct usbdevfs_urb with room for the packets behind it.
type urb struct {
	kind, endpoint  uint8
	status          int32
	flags           uint32
	buffer          unsafe.Pointer
	length, actual  int32
	startFrame      int32
	numberOfPackets int32
	errors          int32
	signal          uint32
	user            uintptr
	packets         [maxPackets]urbPacket
}

type urbPacket struct {
	length, actual uint32
	status         int32
}

// A file is the file of a device in /dev/bus/usb. Its poller tells when a
// transfer can be reaped, so that no thread waits for that.
type file struct {
	f  *os.File
	rc syscall.RawConn
}

func openFile(node string) (*file, error) {
	f, err := os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{f, rc}, nil
}

func (f *file) ioctl(request uintptr, arg unsafe.Pointer) (n int, err error) {
	errno := syscall.Errno(0)
	cerr := f.rc.Control(func(fd uintptr) {
		for errno = syscall.EINTR; errno == syscall.EINTR; {
			var r uintptr
			r, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg))
			n = int(r)
		}
	})
	if cerr != nil {
		return 0, cerr
	}
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// number makes an ioctl that takes the address of a number.
func (f *file) number(request uintptr, n uint32) error {
	_, err := f.ioctl(request, unsafe.Pointer(&n))
	return err
}

// reap waits for a transfer to be over, and returns the address of its urb.
func (f *file) reap() (done uintptr, err error) {
	errno := syscall.Errno(0)
	err = f.rc.Write(func(fd uintptr) bool {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, ioctlReapNoDelay, uintptr(unsafe.Pointer(&done)))
		return errno != syscall.EAGAIN
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return done, err
}
