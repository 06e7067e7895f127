//go:build linux

package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// Defaults of Options.
const (
	// DefaultEnumerateTimeout is for some dozens of round trips.
	DefaultEnumerateTimeout = 4 * time.Second
	// DefaultKernelTimeout is for what the kernel's drivers ask of a device. A
	// single request may take 5 s.
	DefaultKernelTimeout = 15 * time.Second
)

// releaseTimeout is how long Detach waits for the kernel. After that the port
// stays leased until it is free.
const releaseTimeout = 10 * time.Second

// Options are the choices of a Driver. Fields that are zero mean the defaults.
type Options struct {
	// Dir is the directory for the sockets of workers, which must exist and be
	// this user's alone. Its name is short: a socket's has 107 bytes at most.
	Dir string
	// EnumerateTimeout is for a device to tell its descriptors.
	EnumerateTimeout time.Duration
	// KernelTimeout is for all the kernel does until a device works.
	KernelTimeout time.Duration
	// Sysfs is where the kernel's controllers are.
	Sysfs vhci.Sysfs
	// Log is for what an attach does not tell. It has to quote, since workers that
	// fail may have written anything. Default: none.
	Log *slog.Logger
}

// A Driver is a controller.Driver for checked devices. All methods are safe for
// concurrent use.
type Driver struct {
	opts    Options
	changed *notifier
	workers *workers
	closed  chan struct{}
	leaving sync.WaitGroup // goroutines that hold a lease

	mu       sync.Mutex
	ports    *vhci.Driver // nil until it is needed
	leased   map[int]int  // by port, the index of the controller
	reserved map[int]int  // by the kernel's controller, the index of the one that has it
}

// New returns a driver that touches the kernel with the first attach or restore,
// so a machine without vhci_hcd can have one.
func New(opts Options) *Driver {
	opts.EnumerateTimeout = cmp.Or(opts.EnumerateTimeout, DefaultEnumerateTimeout)
	opts.KernelTimeout = cmp.Or(opts.KernelTimeout, DefaultKernelTimeout)
	opts.Log = cmp.Or(opts.Log, slog.New(slog.DiscardHandler))
	return &Driver{
		opts: opts, changed: newNotifier(), closed: make(chan struct{}),
		workers: newWorkers(opts.Dir, opts.Log), leased: make(map[int]int), reserved: make(map[int]int),
	}
}

// Close is called when every attachment was detached or left. Ports that the
// kernel has not let go of by then are its business alone.
func (d *Driver) Close() error {
	close(d.closed)
	d.leaving.Wait()
	d.changed.close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ports == nil {
		return nil
	}
	return d.ports.Close()
}

// errUnloaded is for good. What covers the controllers in a container went with
// them, so one that runs would see whatever came to others.
var errUnloaded = errors.New("vhci_hcd was unloaded while the daemon ran, which uncovers the devices of all in running containers: " +
	"load it, end these containers and restart the daemon")

// open opens the kernel's controllers and makes their devices wait for us.
func (d *Driver) open() (*vhci.Driver, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ports != nil {
		if d.ports.Gone() {
			return nil, errUnloaded
		}
		return d.ports, nil
	}
	ports, err := d.opts.Sysfs.Open(0)
	if errors.Is(err, vhci.ErrNotLoaded) {
		return nil, vhci.ErrNotLoaded
	} else if err != nil {
		return nil, err
	}
	// Once more with each lease, but from the start for whoever attaches by hand.
	for k := range ports.Geometry().Controllers {
		if _, err := unauthorized(ports, k); err != nil && !errors.Is(err, fs.ErrNotExist) {
			ports.Close()
			return nil, err
		}
	}
	if err := d.changed.start(); err != nil {
		ports.Close()
		return nil, err
	}
	if err := (policy.Host{}).ClaimsKnown(); err != nil {
		d.opts.Log.Warn("devices are let in by what they say of themselves alone", "reason", err)
	}
	d.ports = ports
	return ports, nil
}

// unauthorized has devices that come to a controller wait for us, and returns its
// root hubs. The error wraps fs.ErrNotExist for a controller that did not start,
// since the machine is out of buses.
func unauthorized(ports *vhci.Driver, controller int) ([2]vhci.RootHub, error) {
	hubs, err := ports.RootHubs(controller)
	if err != nil {
		return hubs, err
	}
	for _, hub := range hubs {
		if err := hub.SetAuthorizedDefault(false); err != nil {
			return hubs, err
		}
	}
	return hubs, nil
}

// A NoPortError says that no port of the kernel is left for a device. It
// unwraps to ENOSPC.
type NoPortError struct {
	Speed    usb.Speed
	Reserved int // of the kernel's controllers, for others
}

func (e *NoPortError) Error() string {
	reserved := ""
	if e.Reserved > 0 {
		reserved = fmt.Sprintf(" beside %d exclusive controllers", e.Reserved)
	}
	return fmt.Sprintf("no free kernel port for a device of %v speed%s (detach something, or create the controller with --driver user)", e.Speed, reserved)
}

// Unwrap returns ENOSPC: EBUSY is of a port that can be seen in use.
func (e *NoPortError) Unwrap() error { return syscall.ENOSPC }

// A lease is a port of the kernel that nobody else here uses.
type lease struct {
	d    *Driver
	port int
	path string // of its device in sysfs

	released func() // of the plug, once the device can be ready
}

// take leases a port for a device. Those in skip are not tried.
func (d *Driver) take(plug controller.Plug, skip map[int]bool) (*lease, error) {
	ports, err := d.open()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range ports.Geometry().Controllers {
		if !d.mayLease(plug.Controller, k) {
			continue
		}
		list, err := ports.Ports(k)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			_, leased := d.leased[p.Number]
			if !p.Free() || p.Hub != vhci.HubFor(plug.Speed) || leased || skip[p.Number] {
				continue
			}
			l, err := d.lease(p.Number)
			if err != nil {
				return nil, err
			}
			if _, err := os.Lstat(l.path); err == nil {
				continue // somebody else's device is on its way out
			}
			d.leased[l.port] = plug.Controller
			return l, nil
		}
	}
	none := &NoPortError{Speed: plug.Speed}
	if _, exclusive := d.reservedFor(plug.Controller); !exclusive {
		none.Reserved = len(d.reserved)
	}
	return nil, none
}

// lease finds the place of a port. The numbers of buses change when a controller
// starts anew. mu is held.
func (d *Driver) lease(port int) (*lease, error) {
	place, _ := d.ports.Geometry().Place(port)
	hubs, err := unauthorized(d.ports, place.Controller)
	if err != nil {
		return nil, err
	}
	return &lease{d: d, port: port, path: devicePath(hubs, place)}, nil
}

// devicePath is where in sysfs a device on a port is.
func devicePath(hubs [2]vhci.RootHub, p vhci.Place) string {
	hub := hubs[p.Hub]
	return filepath.Join(hub.Path(), hub.BusID(p.Index))
}

// status reads the port.
func (l *lease) status() (vhci.Port, error) {
	place, _ := l.d.ports.Geometry().Place(l.port)
	list, err := l.d.ports.Ports(place.Controller)
	if err != nil {
		return vhci.Port{}, err
	}
	return list[l.port%len(list)], nil
}

// vacated tells whether the kernel has let go of the port and of the device.
func (l *lease) vacated() bool {
	if l.d.ports.Gone() {
		return true
	}
	p, err := l.status()
	if err != nil || !p.Free() {
		return false
	}
	_, err = os.Lstat(l.path)
	return errors.Is(err, fs.ErrNotExist)
}

// release gives the port back when the kernel has let go of it, and what showed
// the device has been taken back. It returns then, or after releaseTimeout.
func (l *lease) release() {
	done := make(chan struct{})
	l.d.leaving.Go(func() {
		defer close(done)
		for w := l.d.changed.wait(); !l.vacated(); {
			if !w.next(l.d.closed, nil) {
				return // the next process finds the port as it is
			}
		}
		if l.released != nil {
			l.released()
		}
		l.giveBack()
	})
	select {
	case <-done:
	case <-time.After(releaseTimeout):
	}
}

// giveBack ends the lease, of a port that the kernel never had or is to keep.
func (l *lease) giveBack() {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	delete(l.d.leased, l.port)
}

// await returns the lease's device when the kernel has come that far with it.
func (l *lease) await(ctx context.Context, src source) (*vhci.Device, error) {
	for w := l.d.changed.wait(); ; {
		p, err := l.status()
		switch {
		case err != nil:
			return nil, err
		case p.Free():
			return nil, errDropped
		case p.Status == vhci.StatusUsed:
			v, err := l.d.ports.Device(l.port)
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return v, err
			}
		}
		if !w.next(ctx.Done(), src.Ended()) {
			return nil, whyNot(ctx, src)
		}
	}
}

var errDropped = errors.New("the kernel has let go of the device")

// whyNot is for an attach whose context or source has ended.
func whyNot(ctx context.Context, src source) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return cmp.Or(src.Err(), errDropped)
}
