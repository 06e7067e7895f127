//go:build linux

package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/worker"
)

var (
	errOther   = errors.New("the kernel's port has another device, or none")
	errNotHeld = errors.New("its worker is gone, or does not have it any more")
)

// find opens the device of an identity, and leases its port. Nothing that is not
// exactly that is found, nor is it where the controller may not have it.
func (d *Driver) find(p controller.Plug, id identity) (*vhci.Device, *lease, error) {
	ports, err := d.open()
	if err != nil {
		return nil, nil, err
	}
	dev, err := ports.Device(id.Port)
	if err != nil {
		return nil, nil, err
	}
	if id.Boot == "" || identify(id.Port, dev) != id {
		dev.Close()
		return nil, nil, errOther
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.leased[id.Port]; ok {
		dev.Close()
		return nil, nil, errors.New("it has been restored already")
	}
	if place, _ := ports.Geometry().Place(id.Port); !d.mayLease(p.Controller, place.Controller) {
		dev.Close()
		return nil, nil, fmt.Errorf("controller %d has no devices on the kernel's vhci_hcd.%d", p.Controller, place.Controller)
	}
	l, err := d.lease(id.Port)
	if err != nil {
		dev.Close()
		return nil, nil, err
	}
	d.leased[id.Port] = p.Controller
	return dev, l, nil
}

// Restore implements controller.Driver. A device is restored if its worker still
// holds it, and the kernel's port has the same device in sysfs.
func (d *Driver) Restore(ctx context.Context, p controller.Plug, text []byte) (controller.Attachment, error) {
	a, err := d.restore(ctx, p, text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", controller.ErrNotRestored, err)
	}
	return a, nil
}

func (d *Driver) restore(ctx context.Context, p controller.Plug, text []byte) (_ controller.Attachment, err error) {
	var s saved
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	place, c, err := d.workers.get(ctx, p.Controller, false)
	if err != nil {
		return nil, err
	}
	a := newAttachment(nil, func() { d.workers.put(place) })
	defer func() {
		if err != nil {
			a.free()
		}
	}()
	if s.Worker != c.Nonce() {
		return nil, errNotHeld
	}
	held := c.Take(s.Device)
	if held == nil {
		return nil, errNotHeld
	}
	a.src, a.saved, a.keep = held, text, &s
	defer func() {
		// What the worker holds is ours, whatever the kernel has.
		if err != nil {
			end(held)
			if a.l != nil {
				a.l.release()
			}
			close(a.done)
		}
	}()
	if a.desc, err = usb.NewDescriptors(s.Raw); err != nil {
		return nil, err
	}
	if a.dev, a.l, err = d.find(p, s.Identity); err != nil {
		return nil, err
	}
	a.l.released = p.Released
	err = judge(p, a.desc)
	if err == nil && p.Ready != nil {
		err = p.Ready(a)
	}
	// It may have been on its way in.
	if err == nil {
		err = authorize(ctx, a)
	}
	if err != nil {
		a.dev.Close()
		return nil, err
	}
	go a.watch()
	return a, nil
}

// Sweep ends what workers hold and nobody has restored. It is called when all has
// been restored that is to be, and before the first attach.
func (d *Driver) Sweep(ctx context.Context) error {
	indexes, err := d.workers.indexes()
	for _, index := range indexes {
		place, c, openErr := d.workers.get(ctx, index, false)
		if errors.Is(openErr, worker.ErrNone) {
			continue
		} else if openErr != nil {
			err = errors.Join(err, openErr)
			continue
		}
		for _, dev := range c.Held() {
			end(dev)
		}
		d.workers.put(place)
	}
	return err
}
