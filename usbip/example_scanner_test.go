package usbip_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// A program reads the codes of a bar-code scanner on another machine, without a
// kernel on the way. The scanner is a keyboard: each report is eight bytes, of
// which the third is the key that is down.
func Example_scanner() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	addr, there := exportScanner(ctx)
	conn, err := usbip.Dial(ctx, addr)
	if err != nil {
		log.Fatal(err)
	}
	scanner, err := usbip.Import(ctx, conn, "1-1", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer scanner.Close()

	// As a driver does: choose the configuration, then poll the endpoint on
	// which reports come.
	config := scanner.Descriptors().Configurations()[0]
	if _, err := usb.ControlTransfer(ctx, scanner, usb.SetConfiguration(config.Value), nil); err != nil {
		log.Fatal(err)
	}
	go there.Scan(ctx, "4006381333931") // somebody does
	reports := config.Interfaces[0].Alternates[0].Endpoints[0]
	code := ""
	for {
		u := usb.URB{
			Endpoint: reports.Address, Type: usb.Interrupt,
			Interval: int32(reports.Interval), Buffer: make([]byte, reports.MaxPacket),
		}
		if err := usb.Do(ctx, scanner, &u); err != nil {
			log.Fatal(err)
		}
		const one, zero, enter = 0x1e, 0x27, 0x28 // USB HID usage tables, page 7
		switch key := u.Buffer[2]; {
		case key == enter:
			fmt.Println(scanner.Descriptors().Product(), "reads", code)
			return
		case key >= one && key <= zero:
			code += "1234567890"[key-one : key-one+1]
		}
	}

	// Output:
	// usbns bar-code scanner reads 4006381333931
}

// exportScanner is the other machine.
func exportScanner(ctx context.Context) (addr string, scanner *emulate.Scanner) {
	scanner, err := emulate.NewScanner(emulate.Options{})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	e := &usbip.Exporter{}
	if err := e.Add("1-1", scanner); err != nil {
		log.Fatal(err)
	}
	go e.Serve(ctx, l)
	return l.Addr().String(), scanner
}
