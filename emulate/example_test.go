package emulate_test

import (
	"context"
	"fmt"
	"log"
	"sync"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// A Thermometer reports each reading on an interrupt endpoint, and the last one
// again when it is asked by a vendor request.
type Thermometer struct {
	*emulate.Device

	mu   sync.Mutex
	last byte // degrees Celsius
	news bool
}

func NewThermometer() (*Thermometer, error) {
	desc, err := emulate.Description{
		Vendor: 0x1209, Product: 0x0010, Version: 0x0100,
		ManufacturerName: "Example", ProductName: "Thermometer", SerialNumber: "1",
		Configurations: []emulate.Configuration{{
			MilliAmps: 50,
			Interfaces: []emulate.Interface{{
				Class: 0xff, // vendor
				Endpoints: []emulate.Endpoint{
					{Address: 0x81, Type: usb.Interrupt, MaxPacket: 1, Interval: 100},
				},
			}},
		}},
	}.Build(usb.SpeedFull)
	if err != nil {
		return nil, err
	}
	t := &Thermometer{}
	t.Device, err = emulate.New(emulate.Config{
		Speed:       usb.SpeedFull,
		Descriptors: desc,
		Control:     t.control,
		Endpoints:   map[usb.Address]emulate.Handler{0x81: t.in},
	})
	return t, err
}

// Read brings in a reading.
func (t *Thermometer) Read(celsius byte) {
	t.mu.Lock()
	t.last, t.news = celsius, true
	t.mu.Unlock()
	t.Wake(0x81)
}

func (t *Thermometer) in(u *usb.URB) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.news {
		return false // until Wake
	}
	t.news = false
	return emulate.Reply(u, []byte{t.last})
}

func (t *Thermometer) control(u *usb.URB) bool {
	if !u.Setup.Is(usb.DirIn|usb.KindVendor, 1) {
		return emulate.Stall(u)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return emulate.Reply(u, []byte{t.last})
}

// A device of one's own, and a host that uses it.
func Example() {
	t, err := NewThermometer()
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()

	ctx := context.Background()
	if _, err := usb.ControlTransfer(ctx, t, usb.SetConfiguration(1), nil); err != nil {
		log.Fatal(err)
	}
	go t.Read(21)
	reading := usb.URB{Endpoint: 0x81, Type: usb.Interrupt, Buffer: make([]byte, 1)}
	if err := usb.Do(ctx, t, &reading); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %d °C\n", t.Descriptors().Product(), reading.Buffer[0])
	// Output: Thermometer: 21 °C
}
