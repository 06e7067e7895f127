//go:build linux

package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/wrap"
)

// Name is argv[0] of a worker.
const Name = "usbns-worker"

// Called reports whether this process was started to be a worker.
func Called() bool { return filepath.Base(os.Args[0]) == Name }

// The descriptors a worker is started with.
const (
	stderrFD = 2 // a pipe that is read when the process has ended
	listenFD = 3 // bound, not listening yet
	daemonFD = 4
)

// maxDevices is more than a controller has ports.
const maxDevices = 64

// resetTimeout is for what nobody needs: the exporter's device is given back
// when the kernel has let go of it.
const resetTimeout = time.Second

// Main is the whole of a worker's process. It returns its exit status.
func Main() int {
	// A panic is not to wait until somebody reads of it.
	if err := unix.SetNonblock(stderrFD, true); err != nil {
		return 2
	}
	daemon, err := newWire(os.NewFile(daemonFD, "daemon"))
	if err != nil {
		return 2
	}
	p := &process{nonce: rand.Text(), devices: make(map[uint64]*device), idle: make(chan struct{}, 1)}
	l, err := p.prepare()
	if err != nil {
		_ = daemon.send(&message{Op: opHello, Error: newFailure(err)}, -1)
		return 1
	}
	p.connections = 1
	go p.serve(daemon)
	go p.accept(l)
	for range p.idle {
		if p.leave() {
			break
		}
	}
	l.Close()
	return 0
}

// A process has what a worker has.
type process struct {
	nonce string
	idle  chan struct{} // something ended

	mu          sync.Mutex
	devices     map[uint64]*device
	daemon      *wire // the last that connected
	connections int
	leaving     bool
}

// A device is a connection to an exporter, from its import on.
type device struct {
	id     uint64
	devid  uint32
	owner  *wire // asked for the import
	ctx    context.Context
	cancel context.CancelFunc // lets go of it

	// Guarded by process.mu.
	imp    *usbip.Importer // nil until it is enumerated
	desc   *usb.Descriptors
	served bool
}

var errReleased = errors.New("device is let go")

// prepare gives up all rights and then listens.
func (p *process) prepare() (*net.UnixListener, error) {
	if err := confine(); err != nil {
		return nil, err
	}
	if err := unix.Listen(listenFD, 4); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	f := os.NewFile(listenFD, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l.(*net.UnixListener), nil
}

// leave reports whether the process has nothing to do any more. Who connects
// after that is turned away, so that nobody relies on it.
func (p *process) leave() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaving = p.connections == 0 && len(p.devices) == 0
	return p.leaving
}

func (p *process) ended() {
	select {
	case p.idle <- struct{}{}:
	default:
	}
}

func (p *process) accept(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors
			continue
		}
		p.mu.Lock()
		if p.leaving {
			p.mu.Unlock()
			c.Close()
			return
		}
		p.connections++
		p.mu.Unlock()
		go p.serve(&wire{c: c})
	}
}

// serve answers a daemon until it goes.
func (p *process) serve(w *wire) {
	for {
		m, f, err := w.receive(true)
		if err != nil {
			break
		}
		p.request(w, m, f)
	}
	w.c.Close()
	p.mu.Lock()
	p.connections--
	if p.daemon == w {
		p.daemon = nil
	}
	// What was not given to the kernel has no owner any more.
	for _, d := range p.devices {
		if d.owner == w && !d.served {
			d.cancel()
		}
	}
	p.mu.Unlock()
	p.ended()
}

func (p *process) request(w *wire, m message, f *os.File) {
	answer := message{Seq: m.Seq, Op: m.Op, Device: m.Device}
	var err error
	switch m.Op {
	case opHello:
		p.hello(w, &answer)
		return
	case opImport:
		if err = p.startImport(w, m, f); err == nil {
			return // and answers later
		}
	case opServe:
		err = p.startServe(m, f)
	case opClose:
		p.mu.Lock()
		if d := p.devices[m.Device]; d != nil {
			d.cancel()
		}
		p.mu.Unlock()
	default:
		err = fmt.Errorf("unknown request %q", m.Op)
	}
	if err != nil {
		answer.Error = newFailure(err)
	}
	p.send(w, &answer)
}

func (p *process) send(w *wire, m *message) {
	if w.send(m, -1) != nil {
		w.c.Close() // a daemon that does not read is none
	}
}

// hello makes w the daemon that is told of ends. It is under mu that the answer
// leaves, and each event: none of a device is ahead of the answer that has it.
func (p *process) hello(w *wire, answer *message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.daemon = w
	answer.Hello = &hello{Version: version, Nonce: p.nonce}
	for id, d := range p.devices {
		if d.served {
			answer.Hello.Held = append(answer.Hello.Held, id)
		}
	}
	p.send(w, answer)
}

var errNoFile = errors.New("no socket came with the request")

func (p *process) startImport(w *wire, m message, f *os.File) error {
	if f == nil {
		return errNoFile
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("use the connection: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &device{id: m.Device, devid: m.DevID, owner: w, ctx: ctx, cancel: cancel}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.devices[d.id] != nil || len(p.devices) >= maxDevices {
		cancel()
		conn.Close()
		return errors.New("too many devices")
	}
	p.devices[d.id] = d
	go p.enumerate(w, m, d, conn)
	return nil
}

// enumerate asks a stranger for its descriptors and answers m with them.
func (p *process) enumerate(w *wire, m message, d *device, conn net.Conn) {
	timeout := time.Duration(m.Timeout) * time.Millisecond
	ctx, cancel := context.WithTimeoutCause(d.ctx, timeout,
		fmt.Errorf("%w: device did not tell its descriptors within %v", os.ErrDeadlineExceeded, timeout))
	defer cancel()
	answer := message{Seq: m.Seq, Op: m.Op, Device: m.Device}
	imp, desc, err := read(ctx, conn, m)
	if err != nil {
		answer.Error = newFailure(err)
		p.forget(d)
		p.send(w, &answer)
		return
	}
	raw := desc.Raw()
	answer.Raw = &raw
	p.mu.Lock()
	d.imp, d.desc = imp, desc
	p.mu.Unlock()
	context.AfterFunc(d.ctx, func() {
		imp.Close()
		p.mu.Lock()
		served := d.served
		p.mu.Unlock()
		if !served {
			p.end(d, errReleased)
		}
	})
	p.send(w, &answer)
}

// read makes a device of a connection, and reads all that it says of itself.
func read(ctx context.Context, conn net.Conn, m message) (*usbip.Importer, *usb.Descriptors, error) {
	imp, err := usbip.NewImporter(ctx, conn, m.DevID, m.Speed, nil)
	if err != nil {
		return nil, nil, err
	}
	// One that does not answer cancellations either must not hold this up.
	stop := context.AfterFunc(ctx, func() { imp.Close() })
	desc, err := usb.ReadReports(ctx, imp, imp.Descriptors())
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		imp.Close()
		return nil, nil, err
	}
	return imp, desc, nil
}

func (p *process) forget(d *device) {
	d.cancel()
	p.mu.Lock()
	delete(p.devices, d.id)
	p.mu.Unlock()
	p.ended()
}

// end forgets d and tells the daemon why, nil if the kernel let go of it.
func (p *process) end(d *device, why error) {
	event := message{Op: opEnded, Device: d.id}
	if why != nil {
		event.Error = newFailure(why)
	}
	d.cancel()
	p.mu.Lock()
	delete(p.devices, d.id)
	if p.daemon != nil && (d.served || d.owner == p.daemon) {
		p.send(p.daemon, &event)
	}
	p.mu.Unlock()
	p.ended()
}

func (p *process) startServe(m message, f *os.File) error {
	if f == nil {
		return errNoFile
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("use the socket: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.devices[m.Device]
	if d == nil || d.imp == nil || d.served || d.ctx.Err() != nil {
		conn.Close()
		return usb.ErrGone
	}
	d.served = true
	go p.serveKernel(d, conn)
	return nil
}

// serveKernel is the life of a device in the kernel.
func (p *process) serveKernel(d *device, conn net.Conn) {
	shield := wrap.NewShield(d.imp, d.desc, 0)
	err := usbip.ServeDevice(context.Background(), conn, d.devid, shield, &usbip.ServeOptions{ResetTimeout: resetTimeout})
	if why := d.imp.Err(); why != nil {
		err = why
	}
	if d.ctx.Err() != nil {
		err = errReleased
	}
	shield.Close()
	p.end(d, err)
}
