package usbip

import (
	"context"
	"sync"

	"github.com/usbns/usbns/usb"
)

// Endpoints of the fake device.
const (
	bulkOut = usb.Address(0x01)
	bulkIn  = usb.Address(0x81)
	intrIn  = usb.Address(0x82)
	isoOut  = usb.Address(0x03)
	isoIn   = usb.Address(0x83)
	altIn   = usb.Address(0x84) // only in setting 1 of interface 0
)

// fakeDescriptors has one configuration, of value 1, with one interface.
func fakeDescriptors() *usb.Descriptors {
	device := []byte{18, usb.DescDevice, 0x00, 0x02, 0xff, 0, 0, 64, 0x34, 0x12, 0x78, 0x56, 0x01, 0x00, 0, 1, 0, 1}
	config := []byte{9, usb.DescConfiguration, 0, 0, 1, 1, 0, 0x80, 50}
	endpoint := func(a usb.Address, t usb.TransferType, size uint16) {
		config = append(config, 7, usb.DescEndpoint, byte(a), byte(t), byte(size), byte(size>>8), 1)
	}
	config = append(config, 9, usb.DescInterface, 0, 0, 5, 0xff, 0, 0, 0)
	endpoint(bulkOut, usb.Bulk, 512)
	endpoint(bulkIn, usb.Bulk, 512)
	endpoint(intrIn, usb.Interrupt, 64)
	endpoint(isoOut, usb.Isochronous, 192)
	endpoint(isoIn, usb.Isochronous, 192)
	config = append(config, 9, usb.DescInterface, 0, 1, 1, 0xff, 0, 0, 0)
	endpoint(altIn, usb.Bulk, 512)
	config[2] = byte(len(config))
	d, err := usb.NewDescriptors(usb.Raw{
		Device: device, Configurations: [][]byte{config},
		Strings: []usb.RawString{{Index: 0, Data: []byte{4, 3, 9, 4}}, {Index: 1, LangID: 0x0409, Data: usb.EncodeString("fake")}},
	})
	if err != nil {
		panic(err)
	}
	return d
}

// A fakeDevice answers control transfers at once. OUT data is taken, bulk IN
// is filled, and everything sent to intrIn waits until it is cancelled or
// completed by the test. respond, if set, comes first.
type fakeDevice struct {
	desc    *usb.Descriptors
	respond func(*fakeDevice, *usb.URB) bool // takes u over by returning true
	reset   func(context.Context) error
	cancel  func(*usb.URB)

	mu      sync.Mutex
	waiting []*usb.URB
	arrived chan *usb.URB // URBs that wait, if not nil
	resets  int
	gone    chan struct{}
	isGone  bool
}

func newFakeDevice() *fakeDevice {
	return &fakeDevice{desc: fakeDescriptors(), gone: make(chan struct{}), arrived: make(chan *usb.URB, 64)}
}

func (d *fakeDevice) Speed() usb.Speed              { return usb.SpeedHigh }
func (d *fakeDevice) Descriptors() *usb.Descriptors { return d.desc }
func (d *fakeDevice) Gone() <-chan struct{}         { return d.gone }

func (d *fakeDevice) Submit(u *usb.URB) error {
	d.mu.Lock()
	if d.isGone {
		d.mu.Unlock()
		return usb.ErrGone
	}
	d.mu.Unlock()
	if d.respond != nil && d.respond(d, u) {
		return nil
	}
	switch {
	case u.Type == usb.Control:
		d.control(u)
	case u.Endpoint == intrIn:
		d.wait(u)
	default:
		transferAll(u)
	}
	return nil
}

// transferAll lets u succeed with a pattern as its data.
func transferAll(u *usb.URB) {
	u.Status, u.Actual = usb.StatusOK, len(u.Buffer)
	if u.In() {
		for i := range u.Buffer {
			u.Buffer[i] = byte(i)
		}
	}
	for i := range u.Packets {
		u.Packets[i].Actual, u.Packets[i].Status = u.Packets[i].Length, usb.StatusOK
	}
	u.Complete(u)
}

func (d *fakeDevice) control(u *usb.URB) {
	u.Status, u.Actual = usb.StatusOK, 0
	if b, ok := d.desc.Answer(u.Setup); ok {
		u.Actual = copy(u.Buffer, b)
	} else if u.In() {
		u.Status = usb.StatusStall
	} else {
		u.Actual = len(u.Buffer)
	}
	u.Complete(u)
}

func (d *fakeDevice) wait(u *usb.URB) {
	d.mu.Lock()
	d.waiting = append(d.waiting, u)
	d.mu.Unlock()
	if d.arrived != nil {
		d.arrived <- u
	}
}

// take removes u from those that wait, so that the caller completes it.
func (d *fakeDevice) take(u *usb.URB) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, w := range d.waiting {
		if w == u {
			d.waiting = append(d.waiting[:i], d.waiting[i+1:]...)
			return true
		}
	}
	return false
}

func (d *fakeDevice) finish(u *usb.URB, status usb.Status, data []byte) {
	if d.take(u) {
		u.Status, u.Actual = status, copy(u.Buffer, data)
		u.Complete(u)
	}
}

func (d *fakeDevice) Cancel(u *usb.URB) {
	d.finish(u, usb.StatusCancelled, nil)
	if d.cancel != nil {
		d.cancel(u)
	}
}

func (d *fakeDevice) cancelAll(status usb.Status) {
	d.mu.Lock()
	all := d.waiting
	d.waiting = nil
	d.mu.Unlock()
	for _, u := range all {
		u.Status, u.Actual = status, 0
		u.Complete(u)
	}
}

func (d *fakeDevice) Reset(ctx context.Context) error {
	d.cancelAll(usb.StatusShutdown)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isGone {
		return usb.ErrGone
	}
	d.resets++
	if d.reset != nil {
		return d.reset(ctx)
	}
	return nil
}

func (d *fakeDevice) resetCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.resets
}

func (d *fakeDevice) Close() error {
	d.mu.Lock()
	was := d.isGone
	d.isGone = true
	d.mu.Unlock()
	if was {
		return nil
	}
	d.cancelAll(usb.StatusNoDevice)
	close(d.gone)
	return nil
}
