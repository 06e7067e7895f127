//go:build linux

package vhci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A RootHub is the USB bus of one half of one of the kernel's controllers.
type RootHub struct {
	Controller int
	Hub        Hub
	Bus        int // the N of usbN, of /dev/bus/usb/N and of a busid N-P

	driver *Driver
}

// RootHubs returns the root hubs of one of the kernel's controllers, indexed by
// [Hub]. A controller of usbns has none.
func (d *Driver) RootHubs(controller int) (hubs [2]RootHub, err error) {
	if controller < 0 || controller >= d.geometry.Controllers {
		return hubs, d.fail("root hubs", -1, ErrNoController)
	}
	dir := controllerName(d.index + controller)
	names, err := readNames(d.platform, dir)
	if err != nil {
		return hubs, d.fail("root hubs", -1, err)
	}
	for _, name := range names {
		number, isBus := strings.CutPrefix(name, "usb")
		bus, err := strconv.ParseUint(number, 10, 16)
		if !isBus || err != nil {
			continue
		}
		hub, err := d.hubOf(filepath.Join(dir, name))
		if err != nil {
			return hubs, d.fail("root hubs", -1, err)
		}
		hubs[hub] = RootHub{Controller: controller, Hub: hub, Bus: int(bus), driver: d}
	}
	for hub, h := range hubs {
		if h.Bus == 0 {
			return hubs, d.fail("root hubs", -1, fmt.Errorf("controller %d has no %s root hub: %w", controller, Hub(hub), fs.ErrNotExist))
		}
	}
	return hubs, nil
}

// hubOf tells the halves apart by their speed in Mbit/s: 480, and 5000 before
// Linux 6.12 or 10000 since.
func (d *Driver) hubOf(dir string) (Hub, error) {
	text, err := readAttr(d.platform, filepath.Join(dir, "speed"))
	if err != nil {
		return 0, err
	}
	switch speed, err := strconv.ParseUint(text, 10, 32); {
	case err == nil && speed == 480:
		return HubHigh, nil
	case err == nil && speed >= 5000:
		return HubSuper, nil
	}
	return 0, syntaxf("%s/speed: %.20q is not the speed of a root hub", dir, text)
}

// dir is the root hub's directory under devices/platform.
func (h RootHub) dir() string {
	return filepath.Join(controllerName(h.driver.index+h.Controller), "usb"+strconv.Itoa(h.Bus))
}

// Path returns the root hub's directory.
func (h RootHub) Path() string { return filepath.Join(filepath.Dir(h.driver.path), h.dir()) }

// BusID returns the name the kernel gives a device on the port of this index.
func (h RootHub) BusID(index int) string { return fmt.Sprintf("%d-%d", h.Bus, index+1) }

// SetAuthorizedDefault says whether drivers bind to devices that come to this
// hub from now on, or have to wait for [Device.SetAuthorized].
func (h RootHub) SetAuthorizedDefault(on bool) error {
	err := h.driver.write(h.driver.platform, filepath.Join(h.dir(), "authorized_default"), boolText(on))
	if err != nil {
		return &OpError{Op: "authorized_default", Path: h.Path(), Port: -1, Err: err}
	}
	return nil
}

// A Device is the open sysfs directory of the device on a port. It is held as a
// directory: once the device is detached, calls fail, also when another device
// has come to the port and taken the busid.
type Device struct {
	BusID string

	port   int
	path   string
	dir    directory
	driver *Driver
}

// Device opens the sysfs directory of what is attached to a port of the kernel,
// whose status must have come to [StatusUsed]: the error is [fs.ErrNotExist] for
// a moment longer, and before it the directory can still be that of the device
// that was on the port last, since a port is free before its device is gone.
//
// It is [fs.ErrNotExist] as well until the kernel's driver for whole devices,
// which is for unauthorized ones too, has the device: whoever authorizes it
// before that is told of success, and the device stays unconfigured
// (usb_choose_configuration in drivers/usb/core/generic.c).
func (d *Driver) Device(port int) (*Device, error) {
	place, ok := d.geometry.Place(port)
	if !ok {
		return nil, d.fail("device", port, fmt.Errorf("no such port, there are %d: %w", d.geometry.Ports(), fs.ErrNotExist))
	}
	hubs, err := d.RootHubs(place.Controller)
	if err != nil {
		return nil, err
	}
	hub := hubs[place.Hub]
	busid := hub.BusID(place.Index)
	dir, err := d.platform.open(filepath.Join(hub.dir(), busid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.fail("device", port, fmt.Errorf("there is no %s: %w", busid, fs.ErrNotExist))
	} else if err != nil {
		return nil, d.fail("device", port, err)
	}
	if _, err := dir.Lstat("driver"); err != nil {
		_ = dir.Close()
		return nil, d.fail("device", port, fmt.Errorf("%s is not ready: %w", busid, bare(err)))
	}
	return &Device{
		BusID:  busid,
		port:   port,
		path:   filepath.Join(hub.Path(), busid),
		dir:    dir,
		driver: d,
	}, nil
}

// Path returns the name the directory had when it was opened.
func (v *Device) Path() string { return v.path }

// Root returns the directory. It is the Device's to close.
func (v *Device) Root() *os.Root { return v.dir.Root }

// SetAuthorized lets the kernel's drivers have the device, or takes it from
// them. It returns when they are bound, or gone, so it waits for the device's
// answers.
func (v *Device) SetAuthorized(on bool) error {
	if err := v.driver.write(v.dir, "authorized", boolText(on)); err != nil {
		return &OpError{Op: "authorized", Path: v.path, Port: v.port, Err: err}
	}
	return nil
}

// Close closes the directory.
func (v *Device) Close() error { return v.dir.Close() }

func boolText(on bool) []byte {
	if on {
		return []byte("1")
	}
	return []byte("0")
}
