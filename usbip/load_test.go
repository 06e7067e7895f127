package usbip

import (
	"net"
	"slices"
	"testing"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// tcpPair returns both ends of a loopback connection.
func tcpPair(tb testing.TB) (net.Conn, net.Conn) {
	tb.Helper()
	return must.Connect(tb)
}

const benchDevID = 1<<16 | 1

// submitPDU is a CMD_SUBMIT with its OUT data.
func submitPDU(seq uint32, ep usb.Address, setup usb.Setup, data []byte, length int) []byte {
	c := CmdSubmit{Seq: seq, DevID: benchDevID, Endpoint: uint32(ep.Number()), Length: int32(length), Setup: setup.Bytes()}
	if ep.In() {
		c.Direction = DirIn
	}
	b := make([]byte, HeaderSize+len(data))
	c.Put(b)
	copy(b[HeaderSize:], data)
	return b
}

func control18() []byte {
	return submitPDU(1, usb.DirIn, usb.GetDescriptor(usb.DescDevice, 0, 0, 18), nil, 18)
}

// A pump keeps a number of URBs in flight at a device.
type pump struct {
	dev       usb.Device
	urbs      []*usb.URB
	left, end int // completions come from one goroutine
	done      chan struct{}
}

func newPump(dev usb.Device, inFlight int, urb usb.URB) *pump {
	p := &pump{dev: dev, done: make(chan struct{}, 1)}
	for range inFlight {
		u := urb
		u.Buffer, u.Packets = make([]byte, len(urb.Buffer)), slices.Clone(urb.Packets)
		u.Complete = p.complete
		p.urbs = append(p.urbs, &u)
	}
	return p
}

func (p *pump) complete(u *usb.URB) {
	if u.Status != usb.StatusOK {
		panic(u.Status)
	}
	if p.end--; p.end == 0 {
		p.done <- struct{}{}
	}
	if p.left > 0 {
		p.left--
		if err := p.dev.Submit(u); err != nil {
			panic(err)
		}
	}
}

func (p *pump) run(tb testing.TB, n int) {
	first := min(n, len(p.urbs))
	p.end, p.left = n, n-first
	for _, u := range p.urbs[:first] {
		must.OK(tb, p.dev.Submit(u))
	}
	<-p.done
}
