//go:build linux

// Package vhcitest is a fake of the kernel's vhci_hcd for the tests of whatever
// attaches to it: a tree of files in a temporary directory, and the rules by
// which the kernel takes what is written to them, on the same errno.
//
// Nothing happens in it by itself. Where the kernel goes on in the background,
// which is from 005 to 006 and from a detach to a free port, the test says when:
// so both sides of every race can be tested, without waiting.
//
// It speaks no USB/IP. A test that wants to talk to the peer of an attachment
// has the kernel's end of the socket, see [Kernel.Socket].
package vhcitest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/vhci"
)

// Kernel is the fake. Its methods are safe for concurrent use.
type Kernel struct {
	// OnAttach, if set before the first attach, is called at the end of every
	// successful one: the port is at 005, and the writer still waits. It may
	// call Enumerate.
	OnAttach func(port int)
	// SlowDetach, if set before the first detach, makes it leave the port as it
	// is until Finish is called, as it looks when the kernel is busy.
	SlowDetach bool

	tb       testing.TB
	root     string
	geometry vhci.Geometry

	mu      sync.Mutex
	ports   []vhci.Port
	sockets []*os.File // by port
	stopped []bool     // by controller
	devices int
}

// New returns a kernel with so many controllers of 2*hubPorts ports, all free.
func New(tb testing.TB, controllers, hubPorts int) *Kernel {
	tb.Helper()
	k := &Kernel{
		tb:       tb,
		root:     tb.TempDir(),
		geometry: vhci.Geometry{Controllers: controllers, HubPorts: hubPorts},
	}
	k.ports = make([]vhci.Port, k.geometry.Ports())
	k.sockets = make([]*os.File, len(k.ports))
	k.stopped = make([]bool, controllers)
	for i := range k.ports {
		place, _ := k.geometry.Place(i)
		k.ports[i] = vhci.Port{Number: i, Hub: place.Hub, Status: vhci.StatusNull}
	}

	for c := range controllers {
		k.link(controllerDir(c)+"/subsystem", "../../../bus/platform")
		k.link(controllerDir(c)+"/driver", "../../../bus/platform/drivers/vhci_hcd")
		for hub, speed := range map[vhci.Hub]string{vhci.HubHigh: "480\n", vhci.HubSuper: "10000\n"} {
			k.put(busDir(c, hub)+"/speed", speed)
			k.put(busDir(c, hub)+"/authorized_default", "1\n")
		}
		k.putStatus(c)
	}
	k.put("vhci_hcd.0/nports", strconv.Itoa(k.geometry.Ports())+"\n")
	k.put("vhci_hcd.0/attach", "")
	k.put("vhci_hcd.0/detach", "")
	tb.Cleanup(func() {
		for _, s := range k.sockets {
			if s != nil {
				s.Close()
			}
		}
	})
	return k
}

// Sysfs is where to open the controller, with index 0.
func (k *Kernel) Sysfs() vhci.Sysfs { return vhci.Sysfs{Root: k.root, Write: k.write} }

// Enumerate does what the kernel does when the peer has answered: a port at 005
// comes to 006 and its device appears. It returns the device's busid.
func (k *Kernel) Enumerate(port int) (busid string) {
	k.tb.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	p := &k.ports[port]
	if p.Status != vhci.StatusNotAssigned {
		k.tb.Errorf("vhcitest: port %d is at %d, want %d to enumerate it", port, p.Status, vhci.StatusNotAssigned)
		return ""
	}
	k.devices++
	p.Status = vhci.StatusUsed
	dir := k.deviceDir(port)
	p.BusID = filepath.Base(dir)
	k.put(dir+"/authorized", k.get(filepath.Dir(dir)+"/authorized_default"))
	k.put(dir+"/driver", "") // a link in the kernel
	k.put(dir+"/devnum", strconv.Itoa(k.devices+1)+"\n")
	k.putStatus(k.controllerOf(port))
	return p.BusID
}

// Finish does what the kernel does some time after a detach, or after the peer
// has closed the connection: the socket is let go, the device vanishes, the port
// is free.
func (k *Kernel) Finish(port int) {
	k.tb.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.finish(port)
}

// Socket returns the kernel's end of the connection that was attached to port.
// It belongs to the Kernel; nil if there is none.
func (k *Kernel) Socket(port int) *os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sockets[port]
}

// Authorized reports whether drivers may bind to the device on a port.
func (k *Kernel) Authorized(port int) bool {
	k.tb.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.HasPrefix(k.get(k.deviceDir(port)+"/authorized"), "1")
}

// Stop makes a controller one that could not start for want of a USB bus.
func (k *Kernel) Stop(controller int) {
	k.tb.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped[controller] = true
	k.check(os.Remove(k.path(controllerDir(controller) + "/driver")))
	for _, hub := range []vhci.Hub{vhci.HubHigh, vhci.HubSuper} {
		k.check(os.RemoveAll(k.path(busDir(controller, hub))))
	}
	k.putStatus(controller)
}

// Unload does what unloading the module does: the controllers are deleted, and
// peers notice. Their ports still are to be finished.
func (k *Kernel) Unload() {
	k.tb.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.geometry.Controllers {
		k.check(os.RemoveAll(k.path(controllerDir(c))))
	}
	for _, s := range k.sockets {
		shutdown(s)
	}
}

// shutdown lets the peer notice although others have the socket too.
func shutdown(s *os.File) {
	if conn, err := s.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

// write is what stands behind write(2).
func (k *Kernel) write(name string, text []byte) error {
	switch name {
	case "vhci_hcd.0/attach":
		return k.attach(text)
	case "vhci_hcd.0/detach":
		return k.detach(text)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := os.Stat(k.path(name)); err != nil {
		return syscall.ENOENT
	}
	k.put(name, string(text)+"\n")
	return nil
}

// attach goes by attach_store in drivers/usb/usbip/vhci_sysfs.c.
func (k *Kernel) attach(text []byte) error {
	r, err := vhci.ParseAttach(text)
	if err != nil {
		return syscall.EINVAL
	}
	port, ok := k.geometry.Landing(r.Port, r.Speed)
	if !ok {
		return syscall.EINVAL
	}
	if err := k.take(port, r); err != nil {
		return err
	}
	if k.OnAttach != nil {
		k.OnAttach(port)
	}
	return nil
}

func (k *Kernel) take(port int, r vhci.AttachRequest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped[k.controllerOf(port)] {
		return syscall.EAGAIN
	}
	if kind, err := unix.GetsockoptInt(r.SockFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		return syscall.EINVAL
	}
	if k.ports[port].Status != vhci.StatusNull {
		return syscall.EBUSY
	}
	fd, err := unix.FcntlInt(uintptr(r.SockFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return syscall.EINVAL
	}
	k.sockets[port] = os.NewFile(uintptr(fd), fmt.Sprintf("vhci port %d", port))
	p := &k.ports[port]
	p.Status, p.Speed, p.DevID, p.SockFD = vhci.StatusNotAssigned, r.Speed, r.DevID, r.SockFD
	k.putStatus(k.controllerOf(port))
	return nil
}

// detach goes by detach_store in the same file.
func (k *Kernel) detach(text []byte) error {
	port, err := vhci.ParseDetach(text)
	if err != nil || port >= k.geometry.Ports() {
		return syscall.EINVAL
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.stopped[k.controllerOf(port)]:
		return syscall.EAGAIN
	case k.ports[port].Status == vhci.StatusNull:
		return syscall.EINVAL
	case k.SlowDetach:
		return nil
	}
	k.finish(port)
	return nil
}

func (k *Kernel) finish(port int) {
	p := &k.ports[port]
	if p.Status == vhci.StatusNull {
		k.tb.Errorf("vhcitest: port %d is free, there is nothing to finish", port)
		return
	}
	if p.Status == vhci.StatusUsed {
		k.check(os.RemoveAll(k.path(k.deviceDir(port))))
	}
	shutdown(k.sockets[port])
	k.sockets[port].Close()
	k.sockets[port] = nil
	*p = vhci.Port{Number: p.Number, Hub: p.Hub, Status: vhci.StatusNull}
	k.putStatus(k.controllerOf(port))
}

func (k *Kernel) controllerOf(port int) int { return port / (2 * k.geometry.HubPorts) }

func controllerDir(controller int) string { return "vhci_hcd." + strconv.Itoa(controller) }

func busDir(controller int, hub vhci.Hub) string {
	return fmt.Sprintf("%s/usb%d", controllerDir(controller), 2*controller+int(hub)+1)
}

func (k *Kernel) deviceDir(port int) string {
	place, _ := k.geometry.Place(port)
	bus := busDir(place.Controller, place.Hub)
	return fmt.Sprintf("%s/%s-%d", bus, strings.TrimPrefix(filepath.Base(bus), "usb"), place.Index+1)
}

// putStatus writes a controller's status file.
func (k *Kernel) putStatus(controller int) {
	k.tb.Helper()
	ports := 2 * k.geometry.HubPorts
	mine := slices.Clone(k.ports[controller*ports : (controller+1)*ports])
	name := "vhci_hcd.0/status"
	if controller > 0 {
		name += "." + strconv.Itoa(controller)
	}
	if k.stopped[controller] {
		for i := range mine {
			mine[i].Status = vhci.StatusNotAssigned
		}
	}
	text := vhci.AppendStatus(nil, mine)
	if k.stopped[controller] {
		text = bytes.ReplaceAll(text, []byte(" 000000 0-0\n"), []byte(" 0000000000000000 0-0\n"))
	}
	k.put(name, string(text))
}

func (k *Kernel) path(name string) string { return filepath.Join(k.root, "devices/platform", name) }

// put writes a file so that a reader sees the old text or the new.
func (k *Kernel) put(name, text string) {
	k.tb.Helper()
	path := k.path(name)
	k.check(os.MkdirAll(filepath.Dir(path), 0o755))
	k.check(os.WriteFile(path+".new", []byte(text), 0o644))
	k.check(os.Rename(path+".new", path))
}

func (k *Kernel) get(name string) string {
	k.tb.Helper()
	text, err := os.ReadFile(k.path(name))
	k.check(err)
	return string(text)
}

func (k *Kernel) link(name, target string) {
	k.tb.Helper()
	path := k.path(name)
	k.check(os.MkdirAll(filepath.Dir(path), 0o755))
	k.check(os.Symlink(target, path))
}

// check fails the test, from whichever goroutine, and goes on.
func (k *Kernel) check(err error) {
	k.tb.Helper()
	if err != nil {
		k.tb.Errorf("vhcitest: %v", err)
	}
}
