//go:build linux

package kernel

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// Direct returns the driver for devices that are handed to the kernel as they
// are, which shares the ports of d.
func (d *Driver) Direct() *Direct { return &Direct{d} }

// Direct is a controller.Driver for devices of exporters one trusts.
type Direct struct{ d *Driver }

// Attach implements controller.Driver.
func (x *Direct) Attach(ctx context.Context, p controller.Plug) (controller.Attachment, error) {
	d := x.d
	if _, err := d.open(); err != nil {
		return nil, err
	}
	if p.Device != nil {
		return d.attachLocal(ctx, p)
	}
	conn, ok := p.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("the connection is no socket, which the kernel needs")
	}
	h, err := newHandedOver(conn)
	if err != nil {
		return nil, err
	}
	a := newAttachment(h, func() { p.Conn.Close() })
	a.keep = &saved{}
	if err := d.give(ctx, p, a, conn); err != nil {
		end(h)
		return nil, err
	}
	return a, nil
}

// Restore implements controller.Driver. There is never anything to restore: the
// connection, which is needed to end the device, ended with the process. The
// device is detached if it is still there.
func (x *Direct) Restore(_ context.Context, p controller.Plug, text []byte) (controller.Attachment, error) {
	if err := x.d.detachOld(p, text); err != nil {
		return nil, fmt.Errorf("%w: %w", controller.ErrNotRestored, err)
	}
	return nil, fmt.Errorf("%w: a device that the kernel has directly ends with who gave it", controller.ErrNotRestored)
}

func (d *Driver) detachOld(p controller.Plug, text []byte) error {
	var s saved
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	dev, l, err := d.find(p, s.Identity)
	if err != nil {
		return err
	}
	dev.Close()
	if err := d.ports.Detach(l.port); err != nil {
		l.giveBack()
		return err
	}
	l.release()
	return nil
}

// A handedOver is a connection that the kernel has. What is kept here is to end
// it, and to be told when it does.
type handedOver struct {
	conn  syscall.RawConn
	epoll *os.File
	close sync.Once
	ended chan struct{}
}

// newHandedOver watches a connection in an epoll of its own: that of the runtime
// asks for input as well, which is the kernel's to read.
func newHandedOver(c syscall.Conn) (*handedOver, error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	efd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	err = unix.SetNonblock(efd, true)
	h := &handedOver{conn: conn, epoll: os.NewFile(uintptr(efd), "epoll"), ended: make(chan struct{})}
	if err == nil {
		var ctlErr error
		err = conn.Control(func(fd uintptr) {
			ctlErr = unix.EpollCtl(efd, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLRDHUP})
		})
		err = errors.Join(err, ctlErr)
	}
	if err != nil {
		h.epoll.Close()
		return nil, fmt.Errorf("watch the connection: %w", err)
	}
	go h.watch()
	return h, nil
}

func (h *handedOver) watch() {
	defer close(h.ended)
	defer h.epoll.Close()
	raw, err := h.epoll.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		var events [1]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), events[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// Close shuts the connection down, for the kernel as well.
func (h *handedOver) Close() {
	h.close.Do(func() {
		_ = h.conn.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	})
}

func (h *handedOver) Ended() <-chan struct{} { return h.ended }

// Err does not know who has closed the connection.
func (h *handedOver) Err() error { return nil }

// maxKernelDescriptors is what usb.NewDescriptors takes, and a byte.
const maxKernelDescriptors = usb.MaxDescriptorBytes + 1

// readDescriptors returns what the kernel has read of a device.
func readDescriptors(v *vhci.Device) (*usb.Descriptors, error) {
	f, err := v.Root().Open("descriptors")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKernelDescriptors))
	if err != nil {
		return nil, err
	}
	const deviceSize, configHead = 18, 4
	raw := usb.Raw{Device: b[:min(len(b), deviceSize)]}
	for b = b[len(raw.Device):]; len(b) >= configHead; {
		n := min(int(binary.LittleEndian.Uint16(b[2:])), len(b))
		if n < configHead {
			break
		}
		raw.Configurations = append(raw.Configurations, b[:n])
		b = b[n:]
	}
	if len(raw.Device) == deviceSize {
		raw.Strings = readStrings(v, raw.Device)
	}
	return usb.NewDescriptors(raw)
}

// readStrings returns those that the kernel keeps as text.
func readStrings(v *vhci.Device, device []byte) []usb.RawString {
	const english = 0x0409
	list := []usb.RawString{{Data: []byte{4, usb.DescString, english & 0xff, english >> 8}}}
	for i, name := range []string{"manufacturer", "product", "serial"} {
		text, err := v.Root().ReadFile(name)
		if index := device[14+i]; err == nil && index != 0 {
			list = append(list, usb.RawString{Index: index, LangID: english, Data: usb.EncodeString(strings.TrimSuffix(string(text), "\n"))})
		}
	}
	return list
}
