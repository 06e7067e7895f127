//go:build linux

package vhci

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/usbns/usbns/usb"
)

// Sysfs is where controllers are looked for. The zero Sysfs is the kernel's.
type Sysfs struct {
	// Root is the directory that stands for /sys, the default.
	Root string

	// Write, where a test is the kernel, takes every write in the place of
	// write(2): name is the file's, from Root/devices/platform, such as
	// "vhci_hcd.0/attach". Nil is the system call.
	Write func(name string, text []byte) error
}

const (
	sysRoot          = "/sys"
	platformDir      = "devices/platform"
	controllerPrefix = "vhci_hcd."
)

func controllerName(index int) string { return controllerPrefix + strconv.Itoa(index) }

// A Driver is an open vhci_hcd.N directory. It holds the directory itself, not
// its name: when the controller is deleted and another takes its index, calls
// fail, and never reach the other. Nothing it reads is cached.
type Driver struct {
	index    int
	path     string
	platform directory // what dir is in, for the kernel's other controllers
	dir      directory
	writer   func(name string, text []byte) error
	geometry Geometry
}

// Open opens controller index of the kernel. All controllers of a stock kernel
// are driven through index 0, which is also what programs mean that know of no
// index.
func Open(index int) (*Driver, error) { return Sysfs{}.Open(index) }

// OpenPath opens the controller whose directory is path, which ends in
// vhci_hcd.N.
func OpenPath(path string) (*Driver, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, openError(path, bare(err))
	}
	number, _ := strings.CutPrefix(filepath.Base(resolved), controllerPrefix)
	index, err := strconv.Atoi(number)
	if err != nil || filepath.Base(resolved) != controllerName(index) {
		return nil, openError(path, fmt.Errorf("not a controller's directory: its name is not %sN", controllerPrefix))
	}
	return open(filepath.Dir(resolved), index, nil)
}

// Open opens controller index of s.
func (s Sysfs) Open(index int) (*Driver, error) {
	root := s.Root
	if root == "" {
		root = sysRoot
	}
	return open(filepath.Join(root, platformDir), index, s.Write)
}

func openError(path string, err error) error {
	return &OpError{Op: "open", Path: path, Port: -1, Err: err}
}

func open(platform string, index int, writer func(string, []byte) error) (_ *Driver, err error) {
	d := &Driver{
		index:  index,
		path:   filepath.Join(platform, controllerName(index)),
		writer: writer,
	}
	defer func() {
		if err != nil {
			d.Close()
			err = openError(d.path, err)
		}
	}()

	if d.platform.Root, err = os.OpenRoot(platform); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotLoaded
	} else if err != nil {
		return nil, bare(err)
	}
	if d.dir, err = d.platform.open(controllerName(index)); errors.Is(err, fs.ErrNotExist) {
		return nil, whyMissing(d.platform)
	} else if err != nil {
		return nil, err
	}
	if d.geometry, err = readGeometry(d.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, whyEmpty(index)
	} else if err != nil {
		return nil, err
	}
	return d, nil
}

// whyMissing tells a machine without the driver from one without that
// controller.
func whyMissing(platform directory) error {
	names, err := readNames(platform, ".")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, controllerPrefix) }) {
		return ErrNoController
	}
	return ErrNotLoaded
}

// whyEmpty tells the two reasons for a directory without control files.
func whyEmpty(index int) error {
	if index == 0 {
		return fmt.Errorf("%w: it has no control files, so it did not start; the machine may be out of USB buses", ErrNoController)
	}
	return fmt.Errorf("%w: it has no control files; a stock kernel has those of all its controllers in %s", ErrNoController, controllerName(0))
}

// readGeometry reads nports and the first status file. The latter has one
// controller's ports, so together they say how many controllers there are.
func readGeometry(dir directory) (Geometry, error) {
	text, err := readFile(dir, "nports")
	if err != nil {
		return Geometry{}, err
	}
	nports, err := strconv.ParseUint(string(bytes.TrimSuffix(text, []byte("\n"))), 10, 31)
	if err != nil {
		return Geometry{}, syntaxf("nports: not a number: %.40q", text)
	}

	text, err = readFile(dir, statusName(0))
	if err != nil {
		return Geometry{}, err
	}
	ports, err := ParseStatus(text)
	if err != nil {
		return Geometry{}, err
	}
	lines := len(ports)
	if lines == 0 || lines%2 != 0 || lines > 2*MaxHubPorts {
		return Geometry{}, syntaxf("status: %d ports in a controller, want an even number up to %d", lines, 2*MaxHubPorts)
	}
	n := int(nports)
	if n == 0 || n%lines != 0 || n/lines > MaxControllers {
		return Geometry{}, syntaxf("nports: %d ports are not 1 to %d controllers of %d", n, MaxControllers, lines)
	}
	return Geometry{Controllers: n / lines, HubPorts: lines / 2}, nil
}

// Index returns the controller's index, the N of vhci_hcd.N.
func (d *Driver) Index() int { return d.index }

// Path returns the name the directory had when it was opened.
func (d *Driver) Path() string { return d.path }

// Geometry returns how many ports there are and how they are numbered.
func (d *Driver) Geometry() Geometry { return d.geometry }

// Close closes the directory. Calls after it fail with [fs.ErrClosed]. What is
// attached stays attached.
func (d *Driver) Close() error {
	var errs []error
	for _, dir := range []directory{d.dir, d.platform} {
		if dir.Root != nil {
			errs = append(errs, dir.Close())
		}
	}
	return errors.Join(errs...)
}

// Gone reports whether the controller has no files any more, as when the kernel's
// module was unloaded. What is loaded after that has others.
func (d *Driver) Gone() bool {
	_, err := d.dir.Lstat("nports")
	return errors.Is(err, fs.ErrNotExist)
}

func statusName(controller int) string {
	if controller == 0 {
		return "status"
	}
	return "status." + strconv.Itoa(controller)
}

// Ports reads the ports of one of the controllers behind the directory, numbered
// from 0, and no other's: the kernel prints them under a lock.
func (d *Driver) Ports(controller int) ([]Port, error) {
	if controller < 0 || controller >= d.geometry.Controllers {
		return nil, d.fail(statusName(controller), -1, ErrNoController)
	}
	if !d.started(controller) {
		return d.portsNotReady(controller), nil
	}
	text, err := readFile(d.dir, statusName(controller))
	if err != nil {
		return nil, d.fail(statusName(controller), -1, err)
	}
	ports, err := ParseStatus(text)
	if err != nil {
		return nil, d.fail(statusName(controller), -1, err)
	}
	if !slices.EqualFunc(ports, d.portsNotReady(controller), samePort) {
		return nil, d.fail(statusName(controller), -1, syntaxf("not the ports of controller %d", controller))
	}
	return ports, nil
}

func samePort(a, b Port) bool { return a.Number == b.Number && a.Hub == b.Hub }

// AllPorts reads the ports of all controllers behind the directory, in the order
// of their numbers.
func (d *Driver) AllPorts() ([]Port, error) {
	all := make([]Port, 0, d.geometry.Ports())
	for k := range d.geometry.Controllers {
		ports, err := d.Ports(k)
		if err != nil {
			return nil, err
		}
		all = append(all, ports...)
	}
	return all, nil
}

// started reports whether the kernel's driver is bound to a controller. One that
// is no device of the kernel's, in a directory of usbns, is always ready.
func (d *Driver) started(controller int) bool {
	name := controllerName(d.index + controller)
	if _, err := d.platform.Lstat(name + "/driver"); err == nil {
		return true
	}
	_, err := d.platform.Lstat(name + "/subsystem")
	return err != nil
}

// portsNotReady is what the kernel prints for a controller that never started.
func (d *Driver) portsNotReady(controller int) []Port {
	ports := make([]Port, 2*d.geometry.HubPorts)
	for i := range ports {
		ports[i] = Port{
			Number: controller*len(ports) + i,
			Hub:    Hub(i / d.geometry.HubPorts),
			Status: StatusNotAssigned,
		}
	}
	return ports
}

// FreePort returns the first free port for a device of speed s, reading one
// controller after the other. A port whose last device has not left sysfs yet
// does not count: see the package comment. The port may be taken by somebody
// else before it is used: an attach that fails with EBUSY is a reason to ask
// again.
func (d *Driver) FreePort(s usb.Speed) (int, error) {
	for k := range d.geometry.Controllers {
		ports, err := d.Ports(k)
		if err != nil {
			return 0, err
		}
		for _, p := range ports {
			if !p.Free() || p.Hub != HubFor(s) {
				continue
			}
			if leaving, err := d.leaving(p.Number); err != nil {
				return 0, err
			} else if !leaving {
				return p.Number, nil
			}
		}
	}
	return 0, d.fail("free port", -1, fmt.Errorf("%w for %s speed", ErrNoFreePort, s))
}

// leaving reports whether the device that was last on a free port still is in
// sysfs.
func (d *Driver) leaving(port int) (bool, error) {
	place, _ := d.geometry.Place(port)
	hubs, err := d.RootHubs(place.Controller)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a controller of usbns
	} else if err != nil {
		return false, err
	}
	hub := hubs[place.Hub]
	_, err = d.platform.Lstat(filepath.Join(hub.dir(), hub.BusID(place.Index)))
	return err == nil, nil
}

// Attach hands a socket to a port. The controller keeps a reference of its own,
// so the caller closes its descriptor afterwards. See the package comment for
// what has happened when Attach returns, and what has not.
//
// Where the error is a [syscall.Errno], nothing was attached: EINVAL if there is
// no such port or speed or the descriptor is no stream socket, EBUSY if the port
// is not free, EAGAIN if the controller is not ready.
func (d *Driver) Attach(r AttachRequest) error {
	if err := d.write(d.dir, opAttach, AppendAttach(nil, r)); err != nil {
		return d.fail(opAttach, r.Port, err)
	}
	return nil
}

// Detach ends what is attached to a port. The port is free again some time after
// Detach returns. The error is EINVAL if there is no such port or it is free.
func (d *Driver) Detach(port int) error {
	if err := d.write(d.dir, opDetach, AppendDetach(nil, port)); err != nil {
		return d.fail(opDetach, port, err)
	}
	return nil
}

func (d *Driver) fail(op string, port int, err error) error {
	return &OpError{Op: op, Path: d.path, Port: port, Err: err}
}
