//go:build linux

package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/usbns/usbns/usb"
)

// answerTimeout is how long a worker may take for what it does alone. One that
// takes longer is killed.
const answerTimeout = 4 * time.Second

// A Client is a daemon's connection to a worker. All methods are safe for
// concurrent use.
type Client struct {
	w     *wire
	proc  *os.Process
	nonce string
	dead  chan struct{} // closed when the worker is of no use any more

	mu      sync.Mutex
	err     error // why
	seq     uint64
	next    uint64 // number of a device
	pending map[uint64]chan message
	devices map[uint64]*Device
	held    map[uint64]*Device // some of devices
}

// A Device is what a worker holds: a connection past IMPORT, and later a device
// of the kernel.
type Device struct {
	c     *Client
	id    uint64
	ended chan struct{}
	err   error // set before ended is closed
}

var errUnasked = errors.New("worker sends what nobody asked for")

func newClient(w *wire, proc *os.Process) *Client {
	return &Client{
		w: w, proc: proc, dead: make(chan struct{}), next: 1,
		pending: make(map[uint64]chan message), devices: make(map[uint64]*Device),
	}
}

// greet asks for what the worker is, which has so long to answer.
func (c *Client) greet(ctx context.Context, timeout time.Duration) error {
	go c.read()
	m, err := c.call(ctx, message{Op: opHello}, nil, timeout, nil)
	if err == nil && (m.Hello == nil || m.Hello.Version != version) {
		err = fmt.Errorf("worker speaks another version than %d", version)
	}
	if err != nil {
		c.fail(err)
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nonce = m.Hello.Nonce
	for _, id := range m.Hello.Held {
		c.devices[id] = &Device{c: c, id: id, ended: make(chan struct{})}
		c.next = max(c.next, id+1)
	}
	c.held = maps.Clone(c.devices)
	return nil
}

// Nonce tells this worker from all others there ever were.
func (c *Client) Nonce() string { return c.nonce }

// Dead is closed when the worker has ended, or was ended for what it did.
func (c *Client) Dead() <-chan struct{} { return c.dead }

// Held returns the devices that the worker had for the kernel when it was found,
// and that nobody has taken.
func (c *Client) Held() []*Device {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.held))
}

// Take returns one of them, nil if it is not among them.
func (c *Client) Take(number uint64) *Device {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.held[number]
	delete(c.held, number)
	return d
}

// Close leaves the worker alone. It ends if it has no device.
func (c *Client) Close() { c.end(errLeft, false) }

func (c *Client) left() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == errLeft
}

// Kill ends the worker, and with it its devices.
func (c *Client) Kill() { c.fail(errKilled) }

var (
	errLeft   = errors.New("connection to the worker is closed")
	errKilled = errors.New("worker was killed")
)

// fail kills the worker. The first reason counts.
func (c *Client) fail(err error) { c.end(err, true) }

func (c *Client) end(err error, kill bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	if kill && c.proc != nil {
		_ = c.proc.Kill()
	}
	c.w.c.Close()
	if kill {
		for _, d := range c.devices {
			d.end(err)
		}
		clear(c.devices)
		clear(c.held)
	}
	close(c.dead)
}

func (d *Device) end(err error) {
	d.err = err
	close(d.ended)
}

// read hands on what the worker sends.
func (c *Client) read() {
	for {
		m, _, err := c.w.receive(false)
		if err == nil {
			err = c.take(m)
		}
		if err != nil {
			c.fail(fmt.Errorf("worker is gone: %w", err))
			return
		}
	}
}

// take fails for what was not asked for.
func (c *Client) take(m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Seq == 0 && m.Op == opEnded {
		d := c.devices[m.Device]
		if d == nil {
			return errUnasked
		}
		delete(c.devices, m.Device)
		delete(c.held, m.Device)
		d.end(m.Error.err())
		return nil
	}
	if m.Seq == 0 && m.Op == opHello && m.Error != nil {
		return fmt.Errorf("it cannot start: %w", m.Error.err())
	}
	answer := c.pending[m.Seq]
	if answer == nil {
		return errUnasked
	}
	delete(c.pending, m.Seq)
	answer <- m
	return nil
}

// call makes a request and waits for the answer, which has so long to come. If
// ctx ends before, late is called with it.
func (c *Client) call(ctx context.Context, m message, s syscall.Conn, timeout time.Duration, late func(message)) (message, error) {
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return m, c.err
	}
	c.seq++
	m.Seq = c.seq
	c.pending[m.Seq] = answer
	c.mu.Unlock()
	if err := c.send(&m, s); err != nil {
		err = fmt.Errorf("ask the worker: %w", err)
		c.fail(err)
		return m, err
	}
	deadline := time.NewTimer(timeout)
	select {
	case got := <-answer:
		deadline.Stop()
		return got, got.Error.err()
	case <-c.dead:
		return m, c.err
	case <-deadline.C:
		c.fail(errLate)
		return m, errLate
	case <-ctx.Done():
	}
	go func() {
		select {
		case got := <-answer:
			if late != nil {
				late(got)
			}
		case <-c.dead:
		case <-deadline.C:
			c.fail(errLate)
		}
	}()
	return m, context.Cause(ctx)
}

var errLate = fmt.Errorf("%w: worker does not answer", os.ErrDeadlineExceeded)

func (c *Client) send(m *message, s syscall.Conn) error {
	if s == nil {
		return c.w.send(m, -1)
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = c.w.send(m, int(fd)) })
	return errors.Join(err, sent)
}

// Import gives the worker a connection past IMPORT and returns what the device
// says of itself, as the worker tells it: unchecked. The exporter has the time
// given to answer. The caller closes its conn in any case.
func (c *Client) Import(ctx context.Context, conn syscall.Conn, devid uint32, speed usb.Speed, timeout time.Duration) (*Device, usb.Raw, error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, usb.Raw{}, c.err
	}
	d := &Device{c: c, id: c.next, ended: make(chan struct{})}
	c.next++
	c.devices[d.id] = d
	c.mu.Unlock()
	m := message{Op: opImport, Device: d.id, DevID: devid, Speed: speed, Timeout: timeout.Milliseconds()}
	check := func(got message) error {
		err := got.Error.err()
		if err == nil && got.Raw == nil {
			err = errors.New("worker tells no descriptors")
			c.fail(err)
		}
		if err != nil {
			c.drop(d)
		}
		return err
	}
	got, err := c.call(ctx, m, conn, timeout+answerTimeout, func(got message) { _ = check(got) })
	if err == nil || got.Error != nil {
		err = check(got)
	}
	if ctx.Err() != nil {
		d.Close()
		return nil, usb.Raw{}, context.Cause(ctx)
	}
	if err != nil {
		return nil, usb.Raw{}, err
	}
	return d, *got.Raw, nil
}

// drop forgets a device that the worker does not have.
func (c *Client) drop(d *Device) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.devices[d.id] == d {
		delete(c.devices, d.id)
		d.end(errReleased)
	}
}

// Number identifies the device within its worker.
func (d *Device) Number() uint64 { return d.id }

// Serve has the worker serve the device on s, whose other end is the kernel's.
func (d *Device) Serve(ctx context.Context, s syscall.Conn) error {
	_, err := d.c.call(ctx, message{Op: opServe, Device: d.id}, s, answerTimeout, nil)
	return err
}

// Close has the worker let go of the device, and returns when it has. One that
// takes longer than it may is killed.
func (d *Device) Close() {
	select {
	case <-d.ended:
		return
	default:
	}
	// An error means that the worker has ended.
	_, _ = d.c.call(context.Background(), message{Op: opClose, Device: d.id}, nil, answerTimeout, nil)
	late := time.NewTimer(answerTimeout)
	defer late.Stop()
	select {
	case <-d.ended:
	case <-d.c.dead:
	case <-late.C:
		d.c.fail(errLate)
	}
}

// Ended is closed when the worker has let go of the device, or has ended.
func (d *Device) Ended() <-chan struct{} { return d.ended }

// Err tells why, after Ended; nil if the kernel let go of it.
func (d *Device) Err() error { return d.err }
