//go:build guest

package emulate_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// The ioctls of usbfs (include/uapi/linux/usbdevice_fs.h), on 64-bit machines.
const (
	usbfsControl   = 0xc0185500
	usbfsSubmitURB = 0x8038550a
	usbfsReapURB   = 0x4008550c
	usbfsClaim     = 0x8004550f
	usbfsReset     = 0x5514
	usbfsClearHalt = 0x80045515

	usbfsInterrupt = 1
	usbfsBulk      = 3
)

type usbfsURB struct {
	Type, Endpoint uint8
	Status         int32
	Flags          uint32
	Buffer         unsafe.Pointer
	Length, Actual int32
	StartFrame     int32
	Packets        int32
	Errors         int32
	Signal         uint32
	User           uintptr
}

type usbfsControlTransfer struct {
	RequestType, Request uint8
	Value, Index, Length uint16
	Timeout              uint32 // milliseconds
	Data                 unsafe.Pointer
}

// A usbfsFile is a program's handle of a device.
type usbfsFile struct{ f *os.File }

func (g *guestDevice) openUsbfs(t *testing.T) usbfsFile {
	t.Helper()
	f, err := os.OpenFile(g.node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	u := usbfsFile{f}
	u.claim(t)
	return u
}

func (u usbfsFile) claim(t *testing.T) {
	t.Helper()
	iface := uint32(0)
	if err := u.ioctl(usbfsClaim, unsafe.Pointer(&iface)); err != nil {
		t.Fatalf("claim: %v", err)
	}
}

func (u usbfsFile) ioctl(request uintptr, p unsafe.Pointer) error { return ioctl(u.f, request, p) }

func ioctl(f *os.File, request uintptr, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}

func (u usbfsFile) control(s usb.Setup, data []byte) error {
	c := usbfsControlTransfer{s.RequestType, s.Request, s.Value, s.Index, s.Length, 10_000, unsafe.Pointer(unsafe.SliceData(data))}
	return u.ioctl(usbfsControl, unsafe.Pointer(&c))
}

// transfers submits transfers and returns them as they are when all are reaped.
func (u usbfsFile) transfers(t *testing.T, urbs ...*usbfsURB) {
	t.Helper()
	var pin runtime.Pinner
	defer pin.Unpin()
	for _, urb := range urbs {
		pin.Pin(urb)
		if urb.Buffer != nil {
			pin.Pin(urb.Buffer)
		}
		if err := u.ioctl(usbfsSubmitURB, unsafe.Pointer(urb)); err != nil {
			t.Fatalf("submit %d bytes to endpoint %02x: %v", urb.Length, urb.Endpoint, err)
		}
	}
	for range urbs {
		var done unsafe.Pointer
		err := error(unix.EINTR) // what usbfs answers when the runtime sends its thread a signal
		for err == unix.EINTR {
			err = u.ioctl(usbfsReapURB, unsafe.Pointer(&done))
		}
		if err != nil {
			t.Fatalf("reap: %v", err)
		}
	}
}

func usbfsTransfer(kind uint8, a usb.Address, b []byte) *usbfsURB {
	return &usbfsURB{Type: kind, Endpoint: uint8(a), Buffer: unsafe.Pointer(unsafe.SliceData(b)), Length: int32(len(b))}
}

// Transfers of all sizes come back through usbfs, at every speed.
func TestGuestLoopback(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedFull, usb.SpeedHigh, usb.SpeedSuper} {
		t.Run(speed.String(), func(t *testing.T) {
			g := attach(t, "loopback", emulate.Options{Speed: speed})
			u := g.openUsbfs(t)
			for _, n := range []int{0, 1, 63, 64, 512, 65536, 1_000_000} {
				t.Run(fmt.Sprint("bulk ", n), func(t *testing.T) {
					echoUsbfs(t, u, usbfsBulk, emulate.LoopbackBulkOut, n)
				})
			}
			for _, n := range []int{0, 1, 63, 64, 512, 65536} {
				t.Run(fmt.Sprint("interrupt ", n), func(t *testing.T) {
					echoUsbfs(t, u, usbfsInterrupt, emulate.LoopbackInterruptOut, n)
				})
			}
			t.Run("scratch", func(t *testing.T) { scratchUsbfs(t, u) })
			t.Run("halt", func(t *testing.T) { haltUsbfs(t, u) })
		})
	}
}

func echoUsbfs(t *testing.T, u usbfsFile, kind uint8, out usb.Address, n int) {
	data, back := make([]byte, n), make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(data)
	i, o := usbfsTransfer(kind, out|usb.DirIn, back), usbfsTransfer(kind, out, data)
	u.transfers(t, i, o)
	for _, urb := range []*usbfsURB{o, i} {
		if urb.Status != 0 || int(urb.Actual) != n {
			t.Errorf("endpoint %02x: status %d, %d of %d bytes", urb.Endpoint, urb.Status, urb.Actual, n)
		}
	}
	if !bytes.Equal(back, data) {
		t.Errorf("%d bytes came back changed", n)
	}
}

func scratchUsbfs(t *testing.T, u usbfsFile) {
	const n = emulate.LoopbackScratchSize
	data, back := make([]byte, n), make([]byte, n)
	rand.NewChaCha8([32]byte{2}).Read(data)
	write := usb.Setup{RequestType: usb.KindVendor, Request: emulate.LoopbackScratch, Length: n}
	read := write
	read.RequestType |= usb.DirIn
	if err := u.control(write, data); err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := u.control(read, back); err != nil {
		t.Fatalf("read: %v", err)
	}
	if !bytes.Equal(back, data) {
		t.Error("scratch memory came back changed")
	}
	read.Value = 1
	if err := u.control(read, back); err != unix.EPIPE {
		t.Errorf("read past the end: %v, want a stall", err)
	}
}

func haltUsbfs(t *testing.T, u usbfsFile) {
	halt := usb.Setup{RequestType: usb.KindVendor, Request: emulate.LoopbackHalt, Index: uint16(emulate.LoopbackBulkOut)}
	if err := u.control(halt, nil); err != nil {
		t.Fatalf("halt: %v", err)
	}
	o := usbfsTransfer(usbfsBulk, emulate.LoopbackBulkOut, make([]byte, 64))
	if u.transfers(t, o); o.Status != -int32(unix.EPIPE) {
		t.Errorf("transfer to a halted endpoint: status %d, want %d", o.Status, -int32(unix.EPIPE))
	}
	a := uint32(emulate.LoopbackBulkOut)
	if err := u.ioctl(usbfsClearHalt, unsafe.Pointer(&a)); err != nil {
		t.Fatalf("clear halt: %v", err)
	}
	echoUsbfs(t, u, usbfsBulk, emulate.LoopbackBulkOut, 512)
	if err := u.ioctl(usbfsReset, nil); err != nil {
		t.Fatalf("reset: %v", err)
	}
	u.claim(t) // a reset takes interfaces from whoever is not asked before
	echoUsbfs(t, u, usbfsBulk, emulate.LoopbackBulkOut, 512)
}
