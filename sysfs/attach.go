//go:build linux

package sysfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/vhci"
)

// attachTimeout bounds an attach whatever the driver does: the writer cannot be
// killed meanwhile. Drivers have shorter ones.
const attachTimeout = 30 * time.Second

// dyingInterval is how often a writer that got a signal is looked at: the kernel
// tells of the first one only.
const dyingInterval = 100 * time.Millisecond

// A Caller is a process that has attach open, as package container has it.
type Caller interface {
	PID() int
	// TakeSocket returns a duplicate of the socket that the thread tid of the
	// caller has at fd. An error wraps the number to give back.
	TakeSocket(tid, fd int) (net.Conn, error)
	// Dying tells whether a signal that ends the caller waits for its thread tid.
	Dying(tid int) bool
	Close() error
}

type attacher struct {
	life     context.Context // ends all attempts
	identify func(tid int) (Caller, error)
	allowed  func(c *controller.Controller, pid int) error
	log      *slog.Logger
}

// attach attaches what text names. The thread tid waits for the answer.
func (a *attacher) attach(interrupted <-chan struct{}, f *file, tid int, text []byte) fuse.Status {
	ctx, cancel := context.WithTimeoutCause(a.life, attachTimeout,
		fmt.Errorf("%w: no end after %v", os.ErrDeadlineExceeded, attachTimeout))
	defer cancel()
	go func() {
		defer cancel()
		waitDying(ctx, interrupted, f.caller, tid)
	}()
	if err := a.plug(ctx, f, tid, text); err != nil {
		return a.refused(f.c, f.caller.PID(), err)
	}
	return fuse.OK
}

func (a *attacher) plug(ctx context.Context, f *file, tid int, text []byte) error {
	r, err := vhci.ParseAttach(text)
	if err != nil {
		return err
	}
	if _, ok := f.c.Geometry().Landing(r.Port, r.Speed); !ok {
		return fmt.Errorf("%w: there is no port %d", syscall.EINVAL, r.Port)
	}
	if a.allowed != nil {
		if err := a.allowed(f.c, f.caller.PID()); err != nil {
			return err
		}
	}
	conn, err := f.caller.TakeSocket(tid, r.SockFD)
	if err != nil {
		return err
	}
	p := controller.Plug{Conn: conn, Speed: r.Speed, DevID: r.DevID, SockFD: r.SockFD}
	if _, ok := conn.RemoteAddr().(*net.TCPAddr); ok { // the name of a Unix socket may be anything
		p.From.Host, p.From.Port, _ = net.SplitHostPort(conn.RemoteAddr().String())
	}
	if _, err := f.c.Attach(ctx, r.Port, p); err != nil {
		conn.Close()
		return err
	}
	return nil
}

// waitDying returns at the end of ctx, or when the thread tid of the caller is
// interrupted by a signal that ends it.
func waitDying(ctx context.Context, interrupted <-chan struct{}, caller Caller, tid int) {
	select {
	case <-ctx.Done():
		return
	case <-interrupted:
	}
	again := time.NewTicker(dyingInterval)
	defer again.Stop()
	for !caller.Dying(tid) {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

// refused tells the log why, and the caller the number.
func (a *attacher) refused(c *controller.Controller, pid int, err error) fuse.Status {
	a.log.Warn("attach refused", "controller", c.String(), "process", pid, "reason", err)
	return statusOf(err)
}

// statusOf returns the number of an error, EPERM if it has none.
func statusOf(err error) fuse.Status {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return fuse.Status(errno)
	}
	return fuse.EPERM
}
