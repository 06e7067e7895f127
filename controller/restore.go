package controller

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
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
	// Ending says that it is to be detached.
	Ending bool `json:"ending,omitempty"`
}

// Saved returns the attachments that a later process can restore, those that are
// just being let in among them.
func (c *Controller) Saved() (ports []SavedPort) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.slots {
		if s != nil && s.saved != nil {
			ports = append(ports, SavedPort{s.port.Number, s.port.Speed, s.port.DevID, s.from, s.saved, s.ending})
		}
	}
	return ports
}

// Save has the Table write down what the controller is when its turn has come, so
// that the last to write has the last state. It is for whoever adds to that what
// the Table does not know. The error is ENOENT if the controller is deleted.
func (c *Controller) Save() error {
	if c.table.Save == nil {
		return nil
	}
	c.saving.Lock()
	defer c.saving.Unlock()
	if c.forgotten {
		return c.error("save", -1, syscall.ENOENT, errUnknown)
	}
	return c.table.Save(c)
}

// forget is the end of saving: the index may be another's from now on.
func (c *Controller) forget() {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.forgotten = true
	if c.table.Forget != nil {
		c.table.Forget(c.index)
	}
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
	if cfg.Exclusive != nil {
		if err := cfg.Exclusive.Keep(index, cfg.Kernel); err != nil {
			heap.Push(&t.free, index)
			return fail(syscall.EEXIST, err)
		}
	}
	t.list[index] = c
	t.count++
	t.name(c)
	return c, nil
}

// RestorePorts restores the attachments of an earlier process, all at the same
// time, and ends those that were to be detached. ready is for each what
// Plug.Ready is to Attach. Those that are not restored are told of in the errors,
// of type [*Error], and their ports are free.
func (c *Controller) RestorePorts(ctx context.Context, ports []SavedPort, ready func(Attachment) error) (failed []error) {
	results := make(chan error, len(ports))
	var attempts []func() error
	// With the first that is let in, all must be among what is Saved.
	for _, saved := range ports {
		attempt, err := c.startRestore(ctx, saved, ready)
		if err != nil {
			results <- err
		} else {
			attempts = append(attempts, attempt)
		}
	}
	for _, attempt := range attempts {
		go func() { results <- attempt() }()
	}
	for range ports {
		if err := <-results; err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}

// startRestore takes the port, and returns what is to be called next.
func (c *Controller) startRestore(ctx context.Context, saved SavedPort, ready func(Attachment) error) (attempt func() error, err error) {
	number, err := c.landing("restore", saved.Port, saved.Speed)
	if err != nil {
		return nil, err
	}
	if saved.Ending {
		ready = func(Attachment) error { return errDetached }
	}
	// No SockFD: -1 would say that the device is being detached.
	p := Plug{Speed: saved.Speed, DevID: saved.DevID, From: saved.From, Ready: ready}
	s, life, err := c.reserve("restore", number, p)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	s.saved, s.ending = saved.Saved, saved.Ending
	c.mu.Unlock()
	return func() error {
		defer c.running.Done()
		return c.plug(ctx, life, "restore", s, func(attempt context.Context) (Attachment, error) {
			return c.cfg.Driver.Restore(attempt, c.prepare(s, p), saved.Saved)
		})
	}, nil
}
