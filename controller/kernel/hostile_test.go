//go:build linux

package kernel_test

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// Offsets of fields in a RET_SUBMIT, and in the packets behind it where it has no
// data.
const (
	atCommand      = 0
	atSeq          = 4
	atStatus       = 20
	atActual       = 24
	atPackets      = 32
	atPacketActual = usbip.HeaderSize + 8
)

// A twist changes a reply. Without the reply, and with false, the peer says
// nothing any more.
type twist func(peer net.Conn, c *usbip.CmdSubmit, reply *[]byte) bool

// A hostile exporter behaves but for one thing.
type hostile struct {
	kind  string // of the device; "" is a loopback
	twist twist
	// What becomes of the device: it is refused, or it ends when it is used, or
	// it goes on.
	fate fate
}

type fate int

const (
	refused fate = iota
	ends
	goesOn
)

// The request that a device is used with, which it stalls.
var poke = usb.Setup{RequestType: usb.DirIn | usb.KindVendor, Request: 0x77, Length: 64}

// onDescribe changes what the device says of itself: a kind of descriptor.
func onDescribe(kind uint16, change func(b []byte)) twist {
	return func(_ net.Conn, c *usbip.CmdSubmit, reply *[]byte) bool {
		s := usb.ParseSetup(c.Setup)
		if s.Is(usb.DirIn, usb.ReqGetDescriptor) && s.Value>>8 == kind && len(*reply) > usbip.HeaderSize {
			change((*reply)[usbip.HeaderSize:])
		}
		return true
	}
}

// onPoke lets nothing but one request be answered otherwise.
func onPoke(f twist) twist {
	return func(peer net.Conn, c *usbip.CmdSubmit, reply *[]byte) bool {
		if c.Endpoint != 0 || usb.ParseSetup(c.Setup).Request == poke.Request {
			return f(peer, c, reply)
		}
		return true
	}
}

// put changes a number of the reply.
func put(offset int, v uint32) twist {
	return func(_ net.Conn, _ *usbip.CmdSubmit, reply *[]byte) bool {
		put32(*reply, offset, v)
		return true
	}
}

// set changes a byte of a descriptor, if it came.
func set(offset int, v byte) func([]byte) {
	return func(b []byte) {
		if len(b) > offset {
			b[offset] = v
		}
	}
}

// cut sends the first bytes of a reply and ends the connection.
func cut(n int) twist {
	return func(peer net.Conn, _ *usbip.CmdSubmit, reply *[]byte) bool {
		_, _ = peer.Write((*reply)[:n])
		peer.Close()
		return false
	}
}

func silence(net.Conn, *usbip.CmdSubmit, *[]byte) bool { return false }

func trickle(peer net.Conn, _ *usbip.CmdSubmit, reply *[]byte) bool {
	for i := range *reply {
		if _, err := peer.Write((*reply)[i : i+1]); err != nil {
			return false
		}
		time.Sleep(50 * time.Millisecond)
	}
	*reply = nil
	return true
}

func trailing(_ net.Conn, _ *usbip.CmdSubmit, reply *[]byte) bool {
	*reply = append(*reply, make([]byte, 100)...)
	return true
}

func twice(_ net.Conn, _ *usbip.CmdSubmit, reply *[]byte) bool {
	*reply = append(*reply, *reply...)
	return true
}

func unaskedUnlink(_ net.Conn, _ *usbip.CmdSubmit, reply *[]byte) bool {
	b := make([]byte, usbip.HeaderSize)
	(&usbip.RetUnlink{Seq: 0x7654321}).Put(b)
	*reply = append(b, *reply...)
	return true
}

// Numbers that broke other implementations.
const (
	minusOne = 0xffffffff
	wraps    = 0xfffffffc
	huge     = 0x7fffffff
)

var hostiles = map[string]hostile{
	"length/actual negative":         {"", put(atActual, minusOne), refused},
	"length/actual huge":             {"", put(atActual, huge), refused},
	"length/actual over the buffer":  {"", put(atActual, 256), refused},
	"length/negative once attached":  {"", onPoke(put(atActual, minusOne)), ends},
	"length/over the buffer of poke": {"", onPoke(put(atActual, 65)), ends},

	"isochronous/packets negative":        {"audio", onPoke(put(atPackets, minusOne)), ends},
	"isochronous/more packets than asked": {"audio", onPoke(put(atPackets, 9)), ends},
	"isochronous/packets that overflow":   {"audio", onPoke(put(atPackets, 0x10000001)), ends},
	"isochronous/packet over its length":  {"audio", onPoke(put(atPacketActual, 4096)), ends},
	"isochronous/packet negative":         {"audio", onPoke(put(atPacketActual, wraps)), ends},
	"isochronous/sum that mismatches":     {"audio", onPoke(put(atPacketActual, 4)), ends},
	"isochronous/data without packets":    {"audio", onPoke(put(atActual, 8)), ends},

	"identity/unknown seqnum":            {"", put(atSeq, 0xabcdef), refused},
	"identity/seqnum zero":               {"", put(atSeq, 0), refused},
	"identity/unknown command":           {"", put(atCommand, 9), refused},
	"identity/a request as a reply":      {"", put(atCommand, uint32(usbip.CommandSubmit)), refused},
	"identity/every reply twice":         {"", twice, refused},
	"identity/reply twice once attached": {"", onPoke(twice), ends},
	"identity/unlink nobody asked for":   {"", unaskedUnlink, goesOn},
	"identity/trailing bytes":            {"", trailing, refused},

	"status/no errno":            {"", put(atStatus, 99), refused},
	"status/no errno of poke":    {"", onPoke(put(atStatus, 99)), goesOn},
	"status/still in progress":   {"", onPoke(put(atStatus, 1<<32-115)), goesOn},
	"status/cancelled by nobody": {"", onPoke(put(atStatus, 1<<32-104)), goesOn},

	"connection/silent":           {"", silence, refused},
	"connection/silent with poke": {"", onPoke(silence), ends},
	"connection/slow":             {"", trickle, refused},
	"connection/closes":           {"", cut(0), refused},
	"connection/half a header":    {"", cut(20), refused},
	"connection/half a payload":   {"", cut(usbip.HeaderSize + 1), refused},
	"connection/half a poke":      {"", onPoke(cut(20)), ends},

	"descriptor/device of length 0":        {"", onDescribe(usb.DescDevice, set(0, 0)), refused},
	"descriptor/device of another type":    {"", onDescribe(usb.DescDevice, set(1, usb.DescString)), refused},
	"descriptor/255 configurations":        {"", onDescribe(usb.DescDevice, set(17, 255)), refused},
	"descriptor/no configuration":          {"", onDescribe(usb.DescDevice, set(17, 0)), refused},
	"descriptor/configuration of length 0": {"", onDescribe(usb.DescConfiguration, set(0, 0)), refused},
	"descriptor/total length too large":    {"", onDescribe(usb.DescConfiguration, set(3, 0xff)), refused},
	"descriptor/total length of nothing":   {"", onDescribe(usb.DescConfiguration, set(2, 0)), refused},
	"descriptor/255 interfaces":            {"", onDescribe(usb.DescConfiguration, set(4, 255)), refused},
	"descriptor/interface of length 0":     {"", onDescribe(usb.DescConfiguration, set(9, 0)), refused},
	"descriptor/interface past the end":    {"", onDescribe(usb.DescConfiguration, set(9, 250)), refused},
	"descriptor/string of odd length":      {"", onDescribe(usb.DescString, set(0, 3)), goesOn},
	"descriptor/string of length 0":        {"", onDescribe(usb.DescString, set(0, 0)), goesOn},
}

// What an exporter does wrong is the end of its own device at the most: that of
// another controller works all the time.
func TestHostileExporters(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 15)
	d := newDriver(t, h, must.TempDir(t))
	// This one gets no device as far as to the kernel.
	impatient := kernel.New(kernel.Options{Dir: must.TempDir(t), Sysfs: h.Sysfs(), EnumerateTimeout: time.Second})
	t.Cleanup(func() { must.OK(t, impatient.Close()) })
	bystander, _ := export(t, "scanner")
	bystander.Controller = 1
	a, err := d.Attach(t.Context(), bystander)
	must.OK(t, err)
	t.Cleanup(a.Detach)
	port := h.port()
	t.Run("all", func(t *testing.T) {
		for name, x := range hostiles {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if x.fate == refused {
					x.test(t, h, impatient)
				} else {
					x.test(t, h, d)
				}
				h.works(t, port)
			})
		}
	})
}

func (x hostile) test(t *testing.T, h *host, d *kernel.Driver) {
	kind := x.kind
	if kind == "" {
		kind = "loopback"
	}
	dev := newDevice(t, kind)
	here, peer := must.Connect(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		mimic(peer, dev, func(c *usbip.CmdSubmit, reply *[]byte) bool { return x.twist(peer, c, reply) })
		mute(peer, false)
	}()
	t.Cleanup(func() { peer.Close(); <-ended })
	a, err := d.Attach(t.Context(), plug(here))
	if x.fate == refused {
		if err == nil {
			a.Detach()
			t.Error("the device is attached")
		}
		return
	}
	must.OK(t, err)
	_, number, _ := strings.Cut(filepath.Base(a.Path()), "-")
	port, err := strconv.Atoi(number)
	must.OK(t, err)
	use(t, h.device(port-1), kind)
	if x.fate == goesOn {
		h.works(t, port-1)
		a.Detach()
		return
	}
	must.Await(t, "the end of the device", a.Done())
	if a.Err() == nil {
		t.Error("nobody knows why it ended")
	}
}

// use submits a transfer, and cancels it if it takes long, as a driver does.
func use(t *testing.T, dev *usbip.Importer, kind string) {
	t.Helper()
	config := dev.Descriptors().Configurations()[0]
	if _, err := usb.ControlTransfer(t.Context(), dev, usb.SetConfiguration(config.Value), nil); err != nil {
		t.Fatal(err)
	}
	u := &usb.URB{Type: usb.Control, Endpoint: usb.DirIn, Setup: poke, Buffer: make([]byte, poke.Length)}
	if kind == "audio" {
		u = isochronous(t, dev, &config)
	}
	done := make(chan struct{})
	u.Complete = func(*usb.URB) { close(done) }
	must.OK(t, dev.Submit(u))
	select {
	case <-done:
		if u.Status == usb.StatusOK {
			t.Error("the transfer succeeded")
		}
	case <-time.After(100 * time.Millisecond):
		dev.Cancel(u)
		must.Await(t, "the end of a transfer that was cancelled", done)
	}
}

// isochronous chooses the first setting that has an isochronous IN endpoint, and
// makes a transfer of eight packets to it.
func isochronous(t *testing.T, dev *usbip.Importer, config *usb.Configuration) *usb.URB {
	t.Helper()
	for _, i := range config.Interfaces {
		for _, alt := range i.Alternates {
			for _, e := range alt.Endpoints {
				if e.Type != usb.Isochronous || !e.Address.In() {
					continue
				}
				if _, err := usb.ControlTransfer(t.Context(), dev, usb.SetInterface(i.Number, alt.Setting), nil); err != nil {
					t.Fatal(err)
				}
				const packets, size = 8, 64
				u := &usb.URB{Type: usb.Isochronous, Endpoint: e.Address, Flags: usb.FlagIsoASAP, Buffer: make([]byte, packets*size)}
				for n := range packets {
					u.Packets = append(u.Packets, usb.IsoPacket{Offset: n * size, Length: size})
				}
				return u
			}
		}
	}
	t.Fatal("the device has no isochronous endpoint")
	return nil
}

// Rounds with one worker, which go through all the rest each time.
func TestRoundsLeaveNothing(t *testing.T) {
	must.NotLeak(t)
	h := newHost(t, 1, 2)
	d := newDriver(t, h, must.TempDir(t))
	keeper, _ := export(t, "scanner")
	a, err := d.Attach(t.Context(), keeper)
	must.OK(t, err)
	t.Cleanup(func() { a.Detach(); noChildren(t) })
	fds := len(must.Descriptors(t))
	for range 100 {
		p, stop := export(t, "scanner")
		b, err := d.Attach(t.Context(), p)
		must.OK(t, err)
		b.Detach()
		stop()
		p.Conn.Close()
	}
	must.Become(t, "few open descriptors", func() bool { return len(must.Descriptors(t)) <= fds+10 })
	last, _ := export(t, "scanner")
	b, err := d.Attach(t.Context(), last)
	must.OK(t, err) // both ports can be used
	b.Detach()
}
