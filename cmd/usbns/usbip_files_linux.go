package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// controllers is what the stock commands work on: a daemon, or files.
type controllers interface {
	Controllers(ctx context.Context) ([]control.Controller, error)
	Ports(ctx context.Context, ref string) ([]control.Port, error)
	Attach(ctx context.Context, conn syscall.Conn, a control.Attach) (port int, err error)
	Detach(ctx context.Context, ref string, port int) error
}

// findControllers prefers a daemon. Where there is none, in a container and on a
// host that does without, it is the files that the stock tool uses.
func findControllers(dir string, sysfs vhci.Sysfs) controllers {
	_, err := os.Stat(filepath.Join(dir, control.Socket))
	if d, openErr := sysfs.Open(0); errors.Is(err, os.ErrNotExist) && openErr == nil {
		d.Close()
		return controlFiles{sysfs: sysfs}
	}
	return control.NewClient(dir)
}

// controlFiles are the vhci_hcd.N directories of a sysfs, and the records that
// the stock tool keeps beside them.
type controlFiles struct {
	sysfs   vhci.Sysfs
	records vhci.Records
}

func (f controlFiles) open(ref string) (*vhci.Driver, error) {
	index, err := strconv.Atoi(ref)
	if err != nil {
		return nil, fmt.Errorf("%q is no index of a controller", ref)
	}
	return f.sysfs.Open(index)
}

// Controllers leaves out the directories that have no files of their own, which
// are all but the first of a stock kernel.
func (f controlFiles) Controllers(context.Context) (list []control.Controller, err error) {
	root := f.sysfs.Root
	if root == "" {
		root = "/sys"
	}
	entries, err := os.ReadDir(filepath.Join(root, "devices/platform"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		number, found := strings.CutPrefix(e.Name(), "vhci_hcd.")
		index, err := strconv.Atoi(number)
		if !found || err != nil {
			continue
		}
		d, err := f.sysfs.Open(index)
		if errors.Is(err, vhci.ErrNoController) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d.Close()
		list = append(list, control.Controller{Index: index})
	}
	slices.SortFunc(list, func(a, b control.Controller) int { return a.Index - b.Index })
	return list, nil
}

// Ports tells of a device what its directory in sysfs does.
func (f controlFiles) Ports(_ context.Context, ref string) ([]control.Port, error) {
	d, err := f.open(ref)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	ports, err := d.AllPorts()
	if err != nil {
		return nil, err
	}
	list := make([]control.Port, 0, len(ports))
	for _, p := range ports {
		q := control.Port{Number: p.Number, Hub: p.Hub.String(), Status: int(p.Status)}
		if p.Status == vhci.StatusUsed {
			q.Speed, q.DevID, q.BusID = int(p.Speed), p.DevID, p.BusID
			q.Vendor, q.Product = identity(d, p.Number)
			if r, err := f.records.Read(d.Index(), p.Number); err == nil {
				q.Remote = control.Remote{Host: r.Host, Port: r.Port, BusID: r.BusID}
			}
		}
		list = append(list, q)
	}
	return list, nil
}

// identity is 0000:0000 for a device that cannot be seen, or is gone meanwhile.
func identity(d *vhci.Driver, port int) (vendor, product uint16) {
	device, err := d.Device(port)
	if err != nil {
		return 0, 0
	}
	defer device.Close()
	read := func(name string) uint16 {
		text, _ := device.Root().ReadFile(name)
		n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 16, 16)
		return uint16(n)
	}
	return read("idVendor"), read("idProduct")
}

// maxAttempts bounds the attempts to take a port that shows as free.
const maxAttempts = 100

// Attach takes another port where somebody was faster.
func (f controlFiles) Attach(_ context.Context, conn syscall.Conn, a control.Attach) (port int, err error) {
	d, err := f.open(a.Controller)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	speed := usb.Speed(a.Speed)
	for range maxAttempts {
		if port, err = d.FreePort(speed); err != nil {
			return 0, err
		}
		err = withSocket(conn, func(fd int) error {
			return d.Attach(vhci.AttachRequest{Port: port, SockFD: fd, DevID: a.DevID, Speed: speed})
		})
		if !errors.Is(err, syscall.EBUSY) {
			break
		}
	}
	if err != nil {
		return 0, err
	}
	record := vhci.Record{Host: a.Remote.Host, Port: a.Remote.Port, BusID: a.Remote.BusID}
	return port, f.records.Write(d.Index(), port, record)
}

func withSocket(conn syscall.Conn, use func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = use(int(fd)) }); err != nil {
		return err
	}
	return failed
}

func (f controlFiles) Detach(_ context.Context, ref string, port int) error {
	d, err := f.open(ref)
	if err != nil {
		return err
	}
	defer d.Close()
	return errors.Join(f.records.Remove(d.Index(), port), d.Detach(port))
}
