package controller

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"

	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/vhci"
)

// Limits and defaults of a Config.
const (
	DefaultHubPorts = 8
	MaxControllers  = 1 << 16 // in a Table
	MaxNameLength   = 63
)

// A Config says what a controller is like.
type Config struct {
	// Name is letters, digits, '.', '_' and '-', and does not begin with the
	// last three. It is not a number, which could be another's index. A
	// controller needs no name.
	Name string
	// HubPorts is the number of ports of each half, at most vhci.MaxHubPorts.
	// Default: DefaultHubPorts. An exclusive controller has those of the kernel's.
	HubPorts int
	// Driver is needed.
	Driver Driver
	// UID and GID own the controller's files.
	UID, GID uint32
	// Policy judges what is attached. The zero Policy takes nothing.
	Policy policy.Policy
	// Exclusive, if not nil, makes the controller exclusive: as long as it exists it
	// has one of the kernel's host controllers alone. It is the Driver's.
	Exclusive Reserver
	// Kernel is the N of that vhci_hcd.N. Create chooses it.
	Kernel int
}

// A Table has the controllers of a machine. All methods are safe for concurrent
// use. The zero Table is empty and ready for use.
type Table struct {
	// OnEvent, if not nil, is told what happens to ports: for each controller
	// in order and one after the other. It can ask the controller for its state
	// and detach ports. It must not block, attach, or delete controllers. It
	// must be set before the first Create.
	OnEvent func(Event)

	// Save, if not nil, writes down what a controller is and what it Saved, for
	// Restore in a later process: when it is made, before a device that outlives
	// this process is let in, and when it is gone. Its error ends the first two.
	// Forget ends that. Both must be set before the first Create.
	Save   func(*Controller) error
	Forget func(index int)

	// Ready, if not nil, is called when a device works and before it shows on
	// its port, a restored one too. Its error refuses the device. What it returns
	// undoes what it did: it is called when the device is gone, before another
	// device can be in its place. It must be set before the first attach.
	Ready func(c *Controller, port int, a Attachment) (undo func(), err error)

	mu     sync.RWMutex
	list   []*Controller // by index, nil where there is none
	byName map[string]*Controller
	free   indexHeap // those of list that are nil and not being deleted
	count  int
	serial uint64 // of the last that was made
}

// Create makes count controllers at the lowest free indexes, all or none. A
// name is for one only. Errors are of type [*Error].
func (t *Table) Create(cfg Config, count int) ([]*Controller, error) {
	fail := func(errno syscall.Errno, err error) ([]*Controller, error) {
		name := "controllers"
		if cfg.Name != "" {
			name = fmt.Sprintf("%.70q", cfg.Name)
		}
		return nil, &Error{Op: "create", Controller: name, Port: -1, Errno: errno, Err: err}
	}
	if cfg.Exclusive != nil && cfg.HubPorts != 0 {
		return fail(syscall.EINVAL, errors.New("an exclusive controller has as many ports as the kernel's"))
	}
	cfg.HubPorts = cmp.Or(cfg.HubPorts, DefaultHubPorts)
	if err := cfg.check(count); err != nil {
		return fail(syscall.EINVAL, err)
	}
	made, errno, err := t.take(cfg, count)
	if err != nil {
		return fail(errno, err)
	}
	// Others need not wait for the disk: they do not see these yet.
	for i, c := range made {
		if err := c.Save(); err != nil {
			for _, c := range made[:i+1] {
				c.forget()
			}
			t.giveBack(made)
			return fail(syscall.EIO, fmt.Errorf("cannot be written down: %w", err))
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range made {
		t.list[c.index] = c
	}
	return made, nil
}

// take makes controllers that nobody finds yet but by their name. What is
// reserved for them stands before that.
func (t *Table) take(cfg Config, count int) ([]*Controller, syscall.Errno, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName[cfg.Name] != nil {
		return nil, syscall.EEXIST, errors.New("a controller has that name")
	}
	if count > MaxControllers-t.count {
		return nil, syscall.ENOSPC, fmt.Errorf("%d controllers and %d more are above %d", t.count, count, MaxControllers)
	}
	made := make([]*Controller, count)
	for i := range made {
		made[i] = t.make(t.takeIndex(), cfg)
	}
	t.count += count
	for _, c := range made {
		if err := c.reserveKernel(); err != nil {
			t.putBack(made)
			return nil, attachErrno(err), err
		}
	}
	t.name(made[0])
	return made, 0, nil
}

// make is called with mu held.
func (t *Table) make(index int, cfg Config) *Controller {
	t.serial++
	return &Controller{cfg: cfg, index: index, serial: t.serial, table: t}
}

// name is called with mu held.
func (t *Table) name(c *Controller) {
	if c.cfg.Name == "" {
		return
	}
	if t.byName == nil {
		t.byName = make(map[string]*Controller)
	}
	t.byName[c.cfg.Name] = c
}

// giveBack undoes take. Somebody may have found the one with a name.
func (t *Table) giveBack(made []*Controller) {
	made[0].stop(errClosed)
	made[0].running.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byName, made[0].cfg.Name)
	t.putBack(made)
}

// putBack makes indexes free again, and what was reserved. It is called with mu
// held.
func (t *Table) putBack(made []*Controller) {
	for _, c := range made {
		c.releaseKernel()
		heap.Push(&t.free, c.index)
	}
	t.count -= len(made)
}

// takeIndex returns an index at which list has room.
func (t *Table) takeIndex() int {
	if len(t.free) > 0 {
		return heap.Pop(&t.free).(int)
	}
	t.list = append(t.list, nil)
	return len(t.list) - 1
}

func (cfg *Config) check(count int) error {
	switch {
	case count < 1:
		return fmt.Errorf("%d controllers cannot be made", count)
	case cfg.Name != "" && count > 1:
		return fmt.Errorf("one name for %d controllers", count)
	case cfg.Name != "" && !validName(cfg.Name):
		return fmt.Errorf("a name is at most %d letters, digits, '.', '_' and '-', begins with a letter or digit, and is not a number", MaxNameLength)
	case cfg.HubPorts < 1 || cfg.HubPorts > vhci.MaxHubPorts:
		return fmt.Errorf("%d ports for a hub, not 1 to %d", cfg.HubPorts, vhci.MaxHubPorts)
	case cfg.Driver == nil:
		return errors.New("no driver")
	}
	return nil
}

func validName(s string) bool {
	number := true
	for _, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9':
			continue
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '.', c == '_', c == '-':
			number = false
		default:
			return false
		}
	}
	return !number && len(s) <= MaxNameLength && !strings.ContainsRune("._-", rune(s[0]))
}

// Controller returns the controller of an index, nil if there is none.
func (t *Table) Controller(index int) *Controller {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if index < 0 || index >= len(t.list) {
		return nil
	}
	return t.list[index]
}

// ByName returns the controller of a name, nil if there is none.
func (t *Table) ByName(name string) *Controller {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byName[name]
}

// All returns all controllers in the order of their indexes.
func (t *Table) All() []*Controller {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*Controller, 0, t.count)
	for _, c := range t.list {
		if c != nil {
			all = append(all, c)
		}
	}
	return all
}

// Delete removes a controller and detaches all its ports. When it returns
// nothing of them is left; only then its index can be used again, which is why it
// takes no index. Errors are of type [*Error], ENOENT if c was deleted before.
func (t *Table) Delete(c *Controller) error {
	t.mu.Lock()
	if c.index >= len(t.list) || t.list[c.index] != c {
		t.mu.Unlock()
		return c.error("delete", -1, syscall.ENOENT, errUnknown)
	}
	t.list[c.index] = nil
	delete(t.byName, c.cfg.Name)
	t.mu.Unlock()

	c.stop(errClosed)
	c.running.Wait()
	c.forget()

	t.mu.Lock()
	defer t.mu.Unlock()
	t.putBack([]*Controller{c})
	return nil
}

// Close ends the table with the process. Attachments that a later process can
// restore are left, all others detached; nothing is forgotten.
func (t *Table) Close() {
	all := t.All()
	// Devices that are slow to go do so at the same time.
	for _, c := range all {
		c.stop(errLeft)
	}
	for _, c := range all {
		c.running.Wait()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list, t.byName, t.free, t.count = nil, nil, nil, 0
}

// An indexHeap is a heap of indexes, the lowest first.
type indexHeap []int

func (h indexHeap) Len() int           { return len(h) }
func (h indexHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h indexHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *indexHeap) Push(x any)        { *h = append(*h, x.(int)) }

func (h *indexHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
