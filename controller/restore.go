package controller

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// A SavedPort is what restores an attachment in a later process.
type SavedPort struct {
	Port  int         `json:"port"`
	Speed usb.Speed   `json:"speed"`
	DevID uint32      `json:"devid"`
	From  vhci.Record `json:"from"`
	Saved []byte      `json:"saved"`
}

// Saved returns the attachments that a later process can restore, those that are
// just being let in among them.
func (c *Controller) Saved() (ports []SavedPort) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.slots {
		if s != nil && s.saved != nil {
			ports = append(ports, SavedPort{s.port.Number, s.port.Speed, s.port.DevID, s.from, s.saved})
		}
	}
	return ports
}

// save writes down what is Saved when its turn has come, so that the last to
// write has the last state.
func (c *Controller) save() error {
	if c.table.Save == nil {
		return nil
	}
	c.saving.Lock()
	defer c.saving.Unlock()
	return c.table.Save(c)
}

// Restore makes a controller again that an earlier process had, at its index and
// without attachments. It saves nothing. Errors are of type [*Error].
func (t *Table) Restore(index int, cfg Config) (*Controller, error) {
	fail := func(errno syscall.Errno, err error) (*Controller, error) {
		return nil, &Error{Op: "restore", Controller: fmt.Sprintf("vhci_hcd.%d", index), Port: -1, Errno: errno, Err: err}
	}
	if err := cfg.check(1); err != nil {
		return fail(syscall.EINVAL, err)
	}
	if index < 0 || index >= MaxControllers {
		return fail(syscall.EINVAL, fmt.Errorf("no index from 0 to %d", MaxControllers-1))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName[cfg.Name] != nil || index < len(t.list) && t.list[index] != nil {
		return fail(syscall.EEXIST, errors.New("a controller has that name or index"))
	}
	for len(t.list) <= index {
		heap.Push(&t.free, len(t.list))
		t.list = append(t.list, nil)
	}
	heap.Remove(&t.free, slices.Index(t.free, index))
	c := t.make(index, cfg)
	t.list[index] = c
	t.count++
	t.name(c)
	return c, nil
}

// RestorePorts restores the attachments of an earlier process, all at the same
// time. ready is for each what Plug.Ready is to Attach. Those that cannot be
// restored are told of in the errors, of type [*Error], and their ports are
// free.
func (c *Controller) RestorePorts(ctx context.Context, ports []SavedPort, ready func(Attachment) error) []error {
	failed := make([]error, len(ports))
	var restoring sync.WaitGroup
	for i, saved := range ports {
		restoring.Go(func() { failed[i] = c.restorePort(ctx, saved, ready) })
	}
	restoring.Wait()
	var errs []error
	for _, err := range failed {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func (c *Controller) restorePort(ctx context.Context, saved SavedPort, ready func(Attachment) error) error {
	number, err := c.landing("restore", saved.Port, saved.Speed)
	if err != nil {
		return err
	}
	p := Plug{Speed: saved.Speed, DevID: saved.DevID, SockFD: -1, From: saved.From, Ready: ready}
	s, life, err := c.reserve("restore", number, p)
	if err != nil {
		return err
	}
	defer c.running.Done()
	return c.plug(ctx, life, "restore", s, func(attempt context.Context) (Attachment, error) {
		return c.cfg.Driver.Restore(attempt, c.prepare(s, p), saved.Saved)
	})
}
