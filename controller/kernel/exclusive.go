//go:build linux

package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/usbns/usbns/vhci"
)

// A NoneFreeError says that all of the kernel's controllers are used. It unwraps
// to ENOSPC.
type NoneFreeError struct {
	Uses []string // of each, by its index
}

func (e *NoneFreeError) Error() string {
	var uses strings.Builder
	for k, use := range e.Uses {
		fmt.Fprintf(&uses, ", vhci_hcd.%d %s", k, use)
	}
	return fmt.Sprintf("none of the kernel's %d controllers is free%s (delete one, detach what is on a shared one, or do without --exclusive; there are as many as the kernel was built with)",
		len(e.Uses), strings.Replace(uses.String(), ",", ":", 1))
}

// Unwrap returns ENOSPC.
func (e *NoneFreeError) Unwrap() error { return syscall.ENOSPC }

// Reserve implements controller.Reserver.
func (d *Driver) Reserve(index int) (kernel, hubPorts int, err error) {
	ports, err := d.open()
	if err != nil {
		return 0, 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	uses := make([]string, ports.Geometry().Controllers)
	// Ports are leased from the other end.
	for k := range slices.Backward(uses) {
		if uses[k], err = d.use(k); err != nil {
			return 0, 0, err
		}
		if uses[k] == "" {
			d.reserved[k] = index
			return k, ports.Geometry().HubPorts, nil
		}
	}
	return 0, 0, &NoneFreeError{uses}
}

// use says what one of the kernel's controllers is used for, and holds back
// devices that come to it if that is nothing, "". mu is held.
func (d *Driver) use(k int) (string, error) {
	if index, ok := d.reserved[k]; ok {
		return fmt.Sprintf("is controller %d's", index), nil
	}
	var of []int
	for port, index := range d.leased {
		if place, _ := d.ports.Geometry().Place(port); place.Controller == k {
			of = append(of, index)
		}
	}
	if of != nil {
		slices.Sort(of)
		return "is shared by " + strings.Trim(fmt.Sprint(slices.Compact(of)), "[]"), nil
	}
	hubs, err := unauthorized(d.ports, k)
	if errors.Is(err, fs.ErrNotExist) {
		return "did not start, for want of USB buses", nil
	}
	if err != nil {
		return "", err
	}
	list, err := d.ports.Ports(k)
	for _, p := range list {
		place, _ := d.ports.Geometry().Place(p.Number)
		if _, err := os.Lstat(devicePath(hubs, place)); err == nil || !p.Free() {
			return "is used by others", nil
		}
	}
	return "", err
}

// mayLease tells whether a controller's devices may be on one of the kernel's. mu
// is held.
func (d *Driver) mayLease(index, k int) bool {
	if owner, ok := d.reserved[k]; ok {
		return owner == index
	}
	_, exclusive := d.reservedFor(index)
	return !exclusive
}

// reservedFor returns what is reserved for a controller. mu is held.
func (d *Driver) reservedFor(index int) (k int, ok bool) {
	for k, owner := range d.reserved {
		if owner == index {
			return k, true
		}
	}
	return 0, false
}

// Keep implements controller.Reserver. It needs nothing of the kernel, which may
// have got its controllers when the next device comes.
func (d *Driver) Keep(index, kernel int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other, ok := d.reserved[kernel]; ok {
		return fmt.Errorf("the kernel's vhci_hcd.%d is controller %d's", kernel, other)
	}
	d.reserved[kernel] = index
	return nil
}

// Release implements controller.Reserver.
func (d *Driver) Release(index int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k, ok := d.reservedFor(index); ok {
		delete(d.reserved, k)
	}
}

// RootHubs implements controller.Reserver.
func (d *Driver) RootHubs(index int) ([]string, error) {
	ports, err := d.open()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	k, ok := d.reservedFor(index)
	if !ok {
		return nil, fmt.Errorf("nothing is reserved for controller %d", index)
	}
	hubs, err := unauthorized(ports, k)
	if err != nil {
		return nil, err
	}
	return []string{hubs[vhci.HubHigh].Path(), hubs[vhci.HubSuper].Path()}, nil
}
