package usbip_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// An importer finds a device, reads what it says of itself, and makes a
// transfer.
func Example_importer() {
	addr, stop := exportThermometer()
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := usbip.Dial(ctx, addr)
	if err != nil {
		log.Fatal(err)
	}
	devices, err := usbip.List(ctx, conn)
	conn.Close()
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range devices {
		fmt.Printf("%s: %04x:%04x, %v speed\n", d.BusID, d.Vendor, d.Product, d.Speed)
	}

	if conn, err = usbip.Dial(ctx, addr); err != nil {
		log.Fatal(err)
	}
	dev, err := usbip.Import(ctx, conn, devices[0].BusID, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	fmt.Println("product:", dev.Descriptors().Product())

	data := make([]byte, 2)
	if _, err := usb.ControlTransfer(ctx, dev, readTemperature, data); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("it is %.1f degrees\n", float64(binary.LittleEndian.Uint16(data))/10)

	// Another one is told that it comes too late.
	if conn, err = usbip.Dial(ctx, addr); err != nil {
		log.Fatal(err)
	}
	_, err = usbip.Import(ctx, conn, devices[0].BusID, nil)
	fmt.Println(errors.Is(err, usbip.OpBusy))

	// Output:
	// 1-1: 1209:0001, full speed
	// product: Thermometer
	// it is 21.5 degrees
	// true
}

// An exporter offers devices until its context ends.
func Example_exporter() {
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0") // 3240 is where others look
	if err != nil {
		log.Fatal(err)
	}
	released := make(chan struct{})
	e := usbip.Exporter{OnEvent: func(ev usbip.Event) {
		switch ev.Kind {
		case usbip.Imported:
			fmt.Println(ev.BusID, "is imported")
		case usbip.Released:
			fmt.Println(ev.BusID, "is free again")
			close(released)
		}
	}}
	if err := e.Add("1-1", newThermometer()); err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- e.Serve(ctx, l) }()

	conn, err := usbip.Dial(ctx, l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	dev, err := usbip.Import(ctx, conn, "1-1", nil)
	if err != nil {
		log.Fatal(err)
	}
	dev.Close()
	<-released
	cancel()
	fmt.Println(<-served)

	// Output:
	// 1-1 is imported
	// 1-1 is free again
	// context canceled
}

// A thermometer is a device that answers one request of its own.
type thermometer struct {
	descriptors *usb.Descriptors
	gone        chan struct{}
}

var readTemperature = usb.Setup{RequestType: usb.DirIn | usb.KindVendor, Request: 1, Length: 2}

func newThermometer() *thermometer {
	d, err := usb.NewDescriptors(usb.Raw{
		Device:         []byte{18, usb.DescDevice, 0x00, 0x02, 0xff, 0, 0, 64, 0x09, 0x12, 0x01, 0x00, 0x00, 0x01, 0, 1, 0, 1},
		Configurations: [][]byte{{9, usb.DescConfiguration, 18, 0, 1, 1, 0, 0x80, 50, 9, usb.DescInterface, 0, 0, 0, 0xff, 0, 0, 0}},
		Strings: []usb.RawString{
			{Index: 0, Data: []byte{4, usb.DescString, 0x09, 0x04}},
			{Index: 1, LangID: 0x0409, Data: usb.EncodeString("Thermometer")},
		},
	})
	if err != nil {
		panic(err)
	}
	return &thermometer{descriptors: d, gone: make(chan struct{})}
}

func (t *thermometer) Speed() usb.Speed              { return usb.SpeedFull }
func (t *thermometer) Descriptors() *usb.Descriptors { return t.descriptors }
func (t *thermometer) Cancel(*usb.URB)               {} // nothing is ever in flight
func (t *thermometer) Reset(context.Context) error   { return nil }
func (t *thermometer) Gone() <-chan struct{}         { return t.gone }
func (t *thermometer) Close() error                  { return nil }

func (t *thermometer) Submit(u *usb.URB) error {
	u.Status, u.Actual = usb.StatusOK, 0
	if b, ok := t.descriptors.Answer(u.Setup); ok {
		u.Actual = copy(u.Buffer, b)
	} else if u.Setup == readTemperature {
		u.Actual = copy(u.Buffer, binary.LittleEndian.AppendUint16(nil, 215))
	} else if u.In() {
		u.Status = usb.StatusStall
	}
	u.Complete(u)
	return nil
}

func exportThermometer() (addr string, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	e := &usbip.Exporter{}
	if err := e.Add("1-1", newThermometer()); err != nil {
		log.Fatal(err)
	}
	go func() { defer close(done); e.Serve(ctx, l) }()
	return l.Addr().String(), func() { cancel(); <-done }
}
