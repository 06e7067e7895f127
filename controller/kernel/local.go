//go:build linux

package kernel

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// A local serves a device of this process, with which it ends.
type local struct {
	dev    usb.Device
	devid  uint32
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}
	err    error
}

func (d *Driver) attachLocal(ctx context.Context, p controller.Plug) (controller.Attachment, error) {
	s := &local{dev: p.Device, devid: p.DevID, ended: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	a := newAttachment(s, func() { p.Device.Close() })
	a.desc = p.Device.Descriptors()
	if err := d.servePair(ctx, p, a, s); err != nil {
		s.cancel()
		return nil, err
	}
	return a, nil
}

// Serve implements server.
func (s *local) Serve(_ context.Context, c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var conn net.Conn
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			dupErr = err
			return
		}
		f := os.NewFile(uintptr(n), "device")
		defer f.Close()
		conn, dupErr = net.FileConn(f)
	})
	if err := errors.Join(err, dupErr); err != nil {
		return err
	}
	go func() {
		defer close(s.ended)
		if err := usbip.ServeDevice(s.ctx, conn, s.devid, s.dev, nil); s.ctx.Err() == nil {
			s.err = err
		}
	}()
	return nil
}

func (s *local) Close()                 { s.cancel() }
func (s *local) Ended() <-chan struct{} { return s.ended }
func (s *local) Err() error             { return s.err }
