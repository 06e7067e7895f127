package controller

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// A Controller is a host controller with ports to attach devices to. A Table
// makes and ends it. All methods are safe for concurrent use.
type Controller struct {
	cfg     Config
	index   int
	serial  uint64
	onEvent func(Event)

	// telling is held from the change of a port until it is told. It is taken
	// before mu.
	telling sync.Mutex

	mu        sync.RWMutex
	slots     []*slot // by port, nil where free; nil until the first attach
	attaching bool
	closed    bool

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
	cancel context.CancelCauseFunc
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
	if !p.Speed.Valid() {
		return 0, c.error("attach", port, syscall.EINVAL, fmt.Errorf("device of %v speed", p.Speed))
	}
	number, ok := c.Geometry().Landing(port, p.Speed)
	if !ok {
		return 0, c.error("attach", port, syscall.EINVAL, errNoPort)
	}
	p.Controller = c.index

	// life ends with Detach, and outlives ctx.
	life, cancel := context.WithCancelCause(context.Background())
	s, err := c.reserve(number, p, cancel)
	if err != nil {
		cancel(nil)
		return 0, err
	}
	defer c.running.Done()

	attempt, cancelAttempt := context.WithCancelCause(ctx)
	defer cancelAttempt(nil)
	stop := context.AfterFunc(life, func() { cancelAttempt(context.Cause(life)) })
	defer stop()
	att, err := c.cfg.Driver.Attach(attempt, p)
	if err != nil {
		errno := attachErrno(err)
		if attempt.Err() != nil {
			// The driver's error is a consequence; the cause may be any error.
			err = context.Cause(attempt)
			errno = attachErrno(errors.Join(err, attempt.Err()))
		}
		cancel(nil)
		c.release(s, true)
		return 0, c.error("attach", number, errno, err)
	}

	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.Lock()
	s.att = att
	s.port.Status = vhci.StatusUsed
	c.attaching = false
	info := s.info()
	c.mu.Unlock()
	c.tell(Event{Kind: Attached, Port: info})
	c.running.Go(func() { c.watch(life, s, att) })
	return number, nil
}

var errNoPort = errors.New("there is no such port")

// reserve takes a port and counts the attach as running.
func (c *Controller) reserve(number int, p Plug, cancel context.CancelCauseFunc) (*slot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, c.error("attach", number, syscall.ENODEV, errClosed)
	case c.attaching:
		return nil, c.error("attach", number, syscall.EAGAIN, errors.New("another attach is running"))
	case c.slots != nil && c.slots[number] != nil:
		return nil, c.error("attach", number, syscall.EBUSY, errors.New("port is in use"))
	}
	if c.slots == nil {
		c.slots = make([]*slot, c.Geometry().Ports())
	}
	place, _ := c.Geometry().Place(number)
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
	c.attaching = true
	c.running.Add(1)
	return s, nil
}

// release frees the port of s, which is still attaching or was attached.
func (c *Controller) release(s *slot, attaching bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots[s.port.Number] = nil
	if attaching {
		c.attaching = false
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
	att.Detach()
	s.cancel(nil)

	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.RLock()
	info := s.info()
	c.mu.RUnlock()
	c.release(s, false)
	c.tell(Event{Kind: Detached, Port: info, Err: why})
}

func (c *Controller) tell(e Event) {
	if c.onEvent != nil {
		e.Controller = c
		c.onEvent(e)
	}
}

// Detach ends what is attached to a port, or is about to be. The port is free
// some time after Detach has returned. Errors are of type [*Error].
func (c *Controller) Detach(port int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.Geometry().Place(port); !ok {
		return c.error("detach", port, syscall.EINVAL, errNoPort)
	}
	if c.slots == nil || c.slots[port] == nil {
		return c.error("detach", port, syscall.EINVAL, errors.New("port is free"))
	}
	c.slots[port].end(errDetached)
	return nil
}

// end is called with Controller.mu held.
func (s *slot) end(cause error) {
	s.port.SockFD = -1
	s.cancel(cause)
}

// stop lets go of all ports for good.
func (c *Controller) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, s := range c.slots {
		if s != nil {
			s.end(errClosed)
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
