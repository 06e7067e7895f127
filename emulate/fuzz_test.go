package emulate

import (
	"slices"
	"sync"
	"testing"

	"github.com/usbns/usbns/usb"
)

// FuzzHost lets a hostile host loose on every kind of device: any requests, any
// data to any endpoint, in any order. Nothing may panic, and every transfer that
// was taken completes once.
func FuzzHost(f *testing.F) {
	configure := []byte{0, 8, 0, 9, 1, 0, 0, 0, 0, 0}
	setting := []byte{0, 8, 1, 11, 1, 0, 2, 0, 0, 0}
	for kind := range kinds {
		f.Add(byte(kind), configure)
		f.Add(byte(kind), slices.Concat(configure, []byte{1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0x81, 64, 0x82, 8}))
		f.Add(byte(kind), slices.Concat(configure, setting, []byte{0x81, 64, 0xff, 0x81, 0xfe}))
	}
	cbw := append([]byte("USBC\x01\x00\x00\x00\x00\x02\x00\x00\x80\x00\x0a"), read10(0, 1)...)[:cbwSize]
	disk := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == "disk" })
	f.Add(byte(disk), slices.Concat(configure, []byte{1, cbwSize}, cbw, []byte{0x81, 255, 0x81, 255, 0x81, 13}))
	f.Fuzz(func(t *testing.T, kind byte, script []byte) {
		d, err := kinds[int(kind)%len(kinds)].open(Options{})
		if err != nil {
			t.Fatal(err)
		}
		h := &fuzzHost{t: t, d: d}
		for len(script) > 0 {
			script = h.step(script)
		}
		d.Close()
		<-d.Gone()
		h.check()
	})
}

type fuzzHost struct {
	t *testing.T
	d usb.Device

	mu        sync.Mutex
	submitted []*usb.URB
	completed map[*usb.URB]int
}

// step does what the first byte says, the address of an endpoint or a few things
// else, with what follows.
func (h *fuzzHost) step(b []byte) (rest []byte) {
	a := usb.Address(b[0])
	b = b[1:]
	switch a {
	case 0xff:
		if err := h.d.Reset(h.t.Context()); err != nil {
			h.t.Error(err)
		}
		return b
	case 0xfe:
		for _, u := range h.submitted {
			h.d.Cancel(u)
		}
		return b
	}
	if len(b) == 0 {
		return nil
	}
	n := int(b[0])
	data := b[1:min(1+n, len(b))]
	rest = b[1+len(data):]
	if a.Number() == 0 {
		h.control(data)
		return rest
	}
	u := &usb.URB{Endpoint: a, Type: endpointType(h.d, a), Buffer: data}
	if a.In() {
		u.Buffer = make([]byte, n)
		rest = b[1:]
	}
	if u.Type == usb.Isochronous {
		u.Packets = []usb.IsoPacket{{Length: len(u.Buffer) / 2}, {Offset: len(u.Buffer) / 2, Length: len(u.Buffer) / 2}}
	}
	h.submit(u)
	return rest
}

func (h *fuzzHost) control(b []byte) {
	if len(b) < 8 {
		return
	}
	u := &usb.URB{Setup: usb.ParseSetup([8]byte(b))}
	u.Buffer = make([]byte, u.Setup.Length)
	copy(u.Buffer, b[8:])
	h.submit(u)
}

func (h *fuzzHost) submit(u *usb.URB) {
	u.Complete = func(u *usb.URB) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.completed == nil {
			h.completed = make(map[*usb.URB]int)
		}
		h.completed[u]++
		if u.Actual < 0 || u.Actual > len(u.Buffer) {
			h.t.Errorf("%v moved %d bytes of %d", u.Endpoint, u.Actual, len(u.Buffer))
		}
	}
	if h.d.Submit(u) == nil {
		h.submitted = append(h.submitted, u)
	}
}

func (h *fuzzHost) check() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, u := range h.submitted {
		if n := h.completed[u]; n != 1 {
			h.t.Errorf("%v %v completed %d times", u.Endpoint, u.Setup, n)
		}
	}
}

// endpointType finds an endpoint in any setting.
func endpointType(d usb.Device, a usb.Address) usb.TransferType {
	for _, c := range d.Descriptors().Configurations() {
		for _, i := range c.Interfaces {
			for _, alt := range i.Alternates {
				for _, e := range alt.Endpoints {
					if e.Address == a {
						return e.Type
					}
				}
			}
		}
	}
	return usb.Bulk
}
