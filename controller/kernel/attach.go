//go:build linux

package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// A source is what stands behind a device of the kernel.
type source interface {
	// Close lets go of the kernel's connection, which makes the kernel let go of
	// the device.
	Close()
	// Ended is closed when that connection is over, however that came.
	Ended() <-chan struct{}
	// Err tells why, nil if the kernel ended it.
	Err() error
}

// An attachment is a device on a port of the kernel.
type attachment struct {
	l     *lease
	src   source
	desc  *usb.Descriptors
	dev   *vhci.Device
	saved []byte
	keep  *saved // what becomes of saved, nil if the device ends with this process
	free  func() // called at the end

	once        sync.Once // for the first of the next two
	stop, leave chan struct{}
	done        chan struct{}
	err         error // set before done is closed
}

func newAttachment(src source, free func()) *attachment {
	return &attachment{src: src, free: free, stop: make(chan struct{}), leave: make(chan struct{}), done: make(chan struct{})}
}

func (a *attachment) Descriptors() *usb.Descriptors { return a.desc }
func (a *attachment) Device() usb.Device            { return nil }
func (a *attachment) Path() string                  { return a.dev.Path() }
func (a *attachment) Saved() []byte                 { return a.saved }
func (a *attachment) Done() <-chan struct{}         { return a.done }
func (a *attachment) Err() error                    { return a.err }

// Detach implements controller.Attachment.
func (a *attachment) Detach() { a.finish(a.stop) }

// Leave implements controller.Attachment.
func (a *attachment) Leave() {
	if a.keep == nil || a.keep.Worker == "" {
		a.Detach() // it has to end with this process
		return
	}
	a.finish(a.leave)
}

func (a *attachment) finish(how chan struct{}) {
	a.once.Do(func() { close(how) })
	<-a.done
}

// watch ends the attachment with its source, or the other way round.
func (a *attachment) watch() {
	defer close(a.done)
	defer a.free()
	defer a.dev.Close()
	select {
	case <-a.leave:
		a.l.giveBack()
		return
	case <-a.src.Ended():
		a.err = a.src.Err()
	case <-a.stop:
	}
	end(a.src)
	a.l.release()
}

// Attach implements controller.Driver.
func (d *Driver) Attach(ctx context.Context, p controller.Plug) (controller.Attachment, error) {
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
	place, c, err := d.workers.get(ctx, p.Controller, true)
	if err != nil {
		return nil, err
	}
	dev, raw, err := c.Import(ctx, conn, p.DevID, p.Speed, d.opts.EnumerateTimeout)
	p.Conn.Close()
	if err != nil {
		d.workers.put(place)
		return nil, err
	}
	a := newAttachment(dev, func() { d.workers.put(place) })
	a.keep = &saved{Worker: c.Nonce(), Device: dev.Number(), Raw: raw}
	// A worker's word is a stranger's.
	if a.desc, err = usb.NewDescriptors(raw); err == nil {
		err = d.servePair(ctx, p, a, dev)
	}
	if err != nil {
		end(dev)
		d.workers.put(place)
		return nil, err
	}
	return a, nil
}

// A server is a source that can serve a device on a socket.
type server interface {
	source
	Serve(context.Context, syscall.Conn) error
}

// servePair gives the kernel one end of a socketpair, and s the other one.
func (d *Driver) servePair(ctx context.Context, p controller.Plug, a *attachment, s server) error {
	if err := judge(p, a.desc); err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	kernel, ours := os.NewFile(uintptr(fds[0]), "kernel"), os.NewFile(uintptr(fds[1]), "device")
	defer kernel.Close()
	err = s.Serve(ctx, ours)
	ours.Close()
	if err != nil {
		return err
	}
	if err := d.give(ctx, p, a, kernel); err != nil {
		end(s)
		return err
	}
	return nil
}

func judge(p controller.Plug, desc *usb.Descriptors) error {
	if p.Judge == nil {
		return nil
	}
	if err := p.Judge(desc); err != nil {
		return fmt.Errorf("%w: %w", controller.ErrRefused, err)
	}
	return nil
}

// give attaches a socket to a port of the kernel and returns when the device
// works there. If it fails the port is given back when the source has ended.
func (d *Driver) give(ctx context.Context, p controller.Plug, a *attachment, s syscall.Conn) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.opts.KernelTimeout,
		fmt.Errorf("%w: device does not work in the kernel after %v", os.ErrDeadlineExceeded, d.opts.KernelTimeout))
	defer cancel()
	if a.l, err = d.attachSocket(p, s); err != nil {
		return err
	}
	a.l.released = p.Released
	defer func() {
		if err != nil {
			end(a.src)
			a.l.release()
			close(a.done)
		}
	}()
	if a.dev, err = a.l.await(ctx, a.src); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.dev.Close()
		}
	}()
	if a.desc == nil {
		// Only the kernel knows what the device says.
		if a.desc, err = readDescriptors(a.dev); err == nil {
			err = judge(p, a.desc)
		}
		if err != nil {
			return err
		}
	}
	if a.keep != nil {
		a.keep.Identity = identify(a.l.port, a.dev)
		if a.saved, err = json.Marshal(a.keep); err != nil {
			return err
		}
	}
	if p.Ready != nil {
		if err := p.Ready(a); err != nil {
			return fmt.Errorf("%w: %w", controller.ErrRefused, err)
		}
	}
	if err := authorize(ctx, a); err != nil {
		return err
	}
	go a.watch()
	return nil
}

// end ends a source and waits for it.
func end(src source) {
	src.Close()
	<-src.Ended()
}

// authorize lets drivers have the device. They may ask it for as much as they
// like; when ctx ends so does the device, and then they do.
func authorize(ctx context.Context, a *attachment) error {
	done := make(chan error, 1)
	go func() { done <- a.dev.SetAuthorized(true) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	case <-a.src.Ended():
	}
	err := whyNot(ctx, a.src)
	a.src.Close()
	<-done
	return err
}

// attachSocket writes to attach. The kernel keeps a reference to the socket.
func (d *Driver) attachSocket(p controller.Plug, s syscall.Conn) (*lease, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	taken := make(map[int]bool) // by others, while we looked
	for {
		l, err := d.take(p, taken)
		if err != nil {
			return nil, err
		}
		var attachErr error
		err = raw.Control(func(fd uintptr) {
			attachErr = d.ports.Attach(vhci.AttachRequest{Port: l.port, SockFD: int(fd), DevID: p.DevID, Speed: p.Speed})
		})
		if err = errors.Join(err, attachErr); err == nil {
			return l, nil
		}
		l.giveBack()
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
		taken[l.port] = true
	}
}

// An identity tells a device in the kernel from all there were and will be.
type identity struct {
	Boot  string `json:"boot"`
	Port  int    `json:"port"`
	Inode uint64 `json:"inode"` // of its directory in sysfs
}

// saved is what Restore needs.
type saved struct {
	Identity identity `json:"identity"`
	Worker   string   `json:"worker,omitempty"`
	Device   uint64   `json:"device,omitempty"` // its number there
	Raw      usb.Raw  `json:"raw"`
}

// identify returns zero, which fits nothing, for what cannot be told.
func identify(port int, dev *vhci.Device) identity {
	boot, err1 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	info, err2 := dev.Root().Stat(".")
	if err1 != nil || err2 != nil {
		return identity{}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{Boot: string(boot), Port: port, Inode: stat.Ino}
}
