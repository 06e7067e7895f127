package controller

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"

	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// A Controller is a host controller with ports to attach devices to. A Table
// makes and ends it. All methods are safe for concurrent use.
type Controller struct {
	cfg    Config
	index  int
	serial uint64
	table  *Table

	// saving is held while the state is written down. It is taken before mu.
	saving    sync.Mutex
	forgotten bool // guarded by saving

	// telling is held from the change of a port until it is told. It is taken
	// before mu.
	telling sync.Mutex

	mu        sync.RWMutex
	slots     []*slot // by port, nil where free; nil until the first attach
	attaching *slot
	closed    error // why nothing can be attached any more

	// running counts attaches and watchers. A watcher is counted before its
	// attach is over, and an attach under mu and not when closed, so that a
	// Wait after stop misses none.
	running sync.WaitGroup
}

// A slot is a port in use. Its fields are guarded by Controller.mu.
type slot struct {
	port   vhci.Port
	from   vhci.Record
	att    Attachment // nil as long as port.Status is StatusNotAssigned
	saved  []byte     // what restores att, nil if nothing does
	ending bool       // Detach was called

	undo    func()    // of Table.Ready
	release sync.Once // for undo
	cancel  context.CancelCauseFunc
}

// A PortInfo is a port and what is attached to it.
type PortInfo struct {
	vhci.Port

	// What the device says of itself, where Status is StatusUsed. The strings
	// are the device's own: they hold what it likes.
	Vendor, Product               uint16
	ManufacturerName, ProductName string
	SerialNumber                  string

	Path string // of the Attachment: the device in the kernel's sysfs, or ""
	From vhci.Record
}

// An Event is what happened to a port.
type Event struct {
	Controller *Controller
	Kind       EventKind
	Port       PortInfo // as it is then, or was before it was detached
	Err        error    // of Detached: why the device went by itself
}

// EventKind says what happened.
type EventKind uint8

// The kinds of events.
const (
	Attached EventKind = iota + 1
	Detached           // the port is free again
)

// Index returns the controller's index, the N of vhci_hcd.N.
func (c *Controller) Index() int { return c.index }

// Serial returns a number, not 0, that no other controller of the table has or
// had: an index is used again.
func (c *Controller) Serial() uint64 { return c.serial }

// Config returns what the controller was made with, defaults filled in.
func (c *Controller) Config() Config { return c.cfg }

// String returns the controller's name, or vhci_hcd.N if it has none.
func (c *Controller) String() string {
	if c.cfg.Name != "" {
		return c.cfg.Name
	}
	return "vhci_hcd." + strconv.Itoa(c.index)
}

// Geometry returns how many ports there are and how they are numbered.
func (c *Controller) Geometry() vhci.Geometry {
	return vhci.Geometry{Controllers: 1, HubPorts: c.cfg.HubPorts}
}

// Attach attaches p to a port, or to the one of the same index in the half that
// the speed needs, and returns the number of the port it took. It returns when
// the device works.
//
// The plug's Conn or Device belongs to the controller when Attach has
// succeeded. When it fails both are still the caller's to close, and the
// controller is as it was; a Conn may have been read, and closed, by then. The
// end of ctx ends the attempt, but not the attachment. Errors are of type
// [*Error].
func (c *Controller) Attach(ctx context.Context, port int, p Plug) (int, error) {
	if (p.Conn == nil) == (p.Device == nil) {
		return 0, c.error("attach", port, syscall.EINVAL, errors.New("neither or both of connection and device"))
	}
	if p.Device != nil {
		p.Speed = p.Device.Speed()
	}
	number, err := c.landing("attach", port, p.Speed)
	if err != nil {
		return 0, err
	}
	s, life, err := c.reserve("attach", number, p)
	if err != nil {
		return 0, err
	}
	defer c.running.Done()
	return number, c.plug(ctx, life, "attach", s, func(attempt context.Context) (Attachment, error) {
		return c.cfg.Driver.Attach(attempt, c.prepare(s, p))
	})
}

// landing returns the port that a device of a speed takes.
func (c *Controller) landing(op string, port int, speed usb.Speed) (int, error) {
	if !speed.Valid() {
		return 0, c.error(op, port, syscall.EINVAL, fmt.Errorf("device of %v speed", speed))
	}
	number, ok := c.Geometry().Landing(port, speed)
	if !ok {
		return 0, c.error(op, port, syscall.EINVAL, errNoPort)
	}
	return number, nil
}

// prepare fills in what is the controller's part of a plug for a slot.
func (c *Controller) prepare(s *slot, p Plug) Plug {
	p.Controller = c.index
	judge, ready := p.Judge, p.Ready
	p.Judge = func(d *usb.Descriptors) error {
		var claims []policy.Claim
		if k, ok := c.cfg.Driver.(Claimer); ok {
			var err error
			if claims, err = k.Claims(d); err != nil {
				return fmt.Errorf("which drivers claim the device: %w", err)
			}
		}
		if err := c.cfg.Policy.Judge(p.Speed, d, c.others(s), claims...); err != nil {
			return err
		}
		if judge == nil {
			return nil
		}
		return judge(d)
	}
	p.Ready = func(a Attachment) error {
		if saved := a.Saved(); saved != nil {
			c.mu.Lock()
			s.saved = saved
			c.mu.Unlock()
			if err := c.Save(); err != nil {
				return fmt.Errorf("device %w: %w", errSave, err)
			}
		}
		if c.table.Ready != nil {
			undo, err := c.table.Ready(c, s.port.Number, a)
			if err != nil {
				return err
			}
			s.undo = undo
		}
		if ready == nil {
			return nil
		}
		return ready(a)
	}
	p.Released = s.released
	return p
}

// released is called by a driver after Ready, and when the slot is freed.
func (s *slot) released() {
	s.release.Do(func() {
		if s.undo != nil {
			s.undo()
		}
	})
}

// others counts the ports in use beside that of s.
func (c *Controller) others(s *slot) (n int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, other := range c.slots {
		if other != nil && other != s {
			n++
		}
	}
	return n
}

// plug makes the attachment of a reserved slot and tells of it, or frees the
// slot. life ends with Detach, and outlives ctx.
func (c *Controller) plug(ctx, life context.Context, op string, s *slot, attach func(context.Context) (Attachment, error)) error {
	attempt, cancelAttempt := context.WithCancelCause(ctx)
	defer cancelAttempt(nil)
	stop := context.AfterFunc(life, func() { cancelAttempt(context.Cause(life)) })
	defer stop()
	att, err := attach(attempt)
	if err != nil {
		errno := attachErrno(err)
		if attempt.Err() != nil {
			// The driver's error is a consequence; the cause may be any error.
			err = context.Cause(attempt)
			errno = attachErrno(errors.Join(err, attempt.Err()))
		}
		s.cancel(nil)
		s.released()
		c.release(s)
		return c.error(op, s.port.Number, errno, err)
	}

	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.Lock()
	s.att = att
	s.port.Status = vhci.StatusUsed
	if c.attaching == s {
		c.attaching = nil
	}
	info := s.info()
	c.mu.Unlock()
	c.tell(Event{Kind: Attached, Port: info})
	c.running.Go(func() { c.watch(life, s, att) })
	return nil
}

var errNoPort = errors.New("there is no such port")

// reserve takes a port and counts what is done with it as running. One slot is
// attaching at a time; those that are restored are not counted among them.
func (c *Controller) reserve(op string, number int, p Plug) (*slot, context.Context, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed != nil:
		return nil, nil, c.error(op, number, syscall.ENODEV, c.closed)
	case op == "attach" && c.attaching != nil:
		return nil, nil, c.error(op, number, syscall.EAGAIN, errors.New("another attach is running"))
	case c.slots != nil && c.slots[number] != nil:
		return nil, nil, c.error(op, number, syscall.EBUSY, errors.New("port is in use"))
	}
	if c.slots == nil {
		c.slots = make([]*slot, c.Geometry().Ports())
	}
	place, _ := c.Geometry().Place(number)
	life, cancel := context.WithCancelCause(context.Background())
	s := &slot{
		port: vhci.Port{
			Number: number,
			Hub:    place.Hub,
			Status: vhci.StatusNotAssigned,
			Speed:  p.Speed,
			DevID:  p.DevID,
			SockFD: p.SockFD,
			BusID:  fmt.Sprintf("%d-%d", place.Hub+1, place.Index+1),
		},
		from:   p.From,
		cancel: cancel,
	}
	c.slots[number] = s
	if op == "attach" {
		c.attaching = s
	}
	c.running.Add(1)
	return s, life, nil
}

// release frees the port of s, which is still attaching or was attached.
func (c *Controller) release(s *slot) {
	c.mu.Lock()
	c.slots[s.port.Number] = nil
	if c.attaching == s {
		c.attaching = nil
	}
	left := c.closed == errLeft
	c.mu.Unlock()
	if s.saved != nil && !left {
		// A later process does not find what is not there any more.
		_ = c.Save()
	}
}

// watch frees the port when the device goes, and lets it go when life ends.
func (c *Controller) watch(life context.Context, s *slot, att Attachment) {
	var why error
	select {
	case <-att.Done():
		why = att.Err()
	case <-life.Done():
	}
	left := context.Cause(life) == errLeft
	if left {
		att.Leave()
	} else {
		att.Detach()
	}
	if !left || s.saved == nil {
		s.released()
	}
	s.cancel(nil)

	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.RLock()
	info := s.info()
	c.mu.RUnlock()
	c.release(s)
	if !left || s.saved == nil {
		c.tell(Event{Kind: Detached, Port: info, Err: why})
	}
}

func (c *Controller) tell(e Event) {
	if c.table.OnEvent != nil {
		e.Controller = c
		c.table.OnEvent(e)
	}
}

// Detach ends what is attached to a port, or is about to be. The port is free
// some time after Detach has returned; if this process ends before, the next one
// goes on with it. Errors are of type [*Error].
func (c *Controller) Detach(port int) error {
	outlives, err := c.detach(port)
	if outlives {
		// If that fails the device goes all the same.
		_ = c.Save()
	}
	return err
}

// detach tells whether the device outlives this process otherwise.
func (c *Controller) detach(port int) (outlives bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.Geometry().Place(port); !ok {
		return false, c.error("detach", port, syscall.EINVAL, errNoPort)
	}
	if c.slots == nil || c.slots[port] == nil {
		return false, c.error("detach", port, syscall.EINVAL, errors.New("port is free"))
	}
	s := c.slots[port]
	s.ending = true
	s.end(errDetached)
	return s.saved != nil, nil
}

// end is called with Controller.mu held.
func (s *slot) end(cause error) {
	s.port.SockFD = -1
	s.cancel(cause)
}

// stop lets go of all ports for good: with errClosed they are detached, with
// errLeft what a later process can restore is left as it is.
func (c *Controller) stop(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return
	}
	c.closed = cause
	for _, s := range c.slots {
		if s != nil {
			s.end(cause)
		}
	}
}

// AppendStatus appends the text of the file status to dst. It allocates only to
// grow dst.
func (c *Controller) AppendStatus(dst []byte) []byte {
	var ports [2 * vhci.MaxHubPorts]vhci.Port
	n := c.Geometry().Ports()
	c.mu.RLock()
	defer c.mu.RUnlock()
	for i := range ports[:n] {
		if c.slots != nil && c.slots[i] != nil {
			ports[i] = c.slots[i].port
		} else {
			ports[i] = c.freePort(i)
		}
	}
	return vhci.AppendStatus(dst, ports[:n])
}

// Ports returns all ports in the order of their numbers.
func (c *Controller) Ports() []PortInfo {
	infos := make([]PortInfo, c.Geometry().Ports())
	c.mu.RLock()
	defer c.mu.RUnlock()
	for i := range infos {
		if c.slots != nil && c.slots[i] != nil {
			infos[i] = c.slots[i].info()
		} else {
			infos[i].Port = c.freePort(i)
		}
	}
	return infos
}

func (c *Controller) freePort(number int) vhci.Port {
	p := vhci.Port{Number: number, Status: vhci.StatusNull}
	if number >= c.cfg.HubPorts {
		p.Hub = vhci.HubSuper
	}
	return p
}

// Device returns the device on a port, nil if there is none that is used in
// this process.
func (c *Controller) Device(port int) usb.Device {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if port < 0 || port >= len(c.slots) || c.slots[port] == nil || c.slots[port].att == nil {
		return nil
	}
	return c.slots[port].att.Device()
}

// info is called with Controller.mu held.
func (s *slot) info() PortInfo {
	info := PortInfo{Port: s.port, From: s.from}
	if s.att == nil {
		return info
	}
	info.Path = s.att.Path()
	d := s.att.Descriptors()
	info.Vendor, info.Product = d.Device().Vendor, d.Device().Product
	info.ManufacturerName, info.ProductName, info.SerialNumber = d.Manufacturer(), d.Product(), d.Serial()
	return info
}

func (c *Controller) error(op string, port int, errno syscall.Errno, err error) *Error {
	return &Error{Op: op, Controller: c.String(), Port: port, Errno: errno, Err: err}
}
