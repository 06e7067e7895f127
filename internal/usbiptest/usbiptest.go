// Package usbiptest exports devices for the time of a test.
package usbiptest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// StockAddr is where the stock usbip looks for devices if it is told no port.
const StockAddr = "127.0.0.1:3240"

// Export offers devices at addr as 1-1, 1-2 and so on, and returns where. It ends
// and the devices are closed with the test.
func Export(t testing.TB, addr string, devices ...usb.Device) string {
	t.Helper()
	e := &usbip.Exporter{OnEvent: func(ev usbip.Event) {
		if ev.Err != nil {
			t.Logf("exporter: %+v", ev)
		}
	}}
	for i, d := range devices {
		t.Cleanup(func() {
			d.Close()
			<-d.Gone()
		})
		must.OK(t, e.Add(fmt.Sprintf("1-%d", i+1), d))
	}
	l, err := net.Listen("tcp", addr)
	must.OK(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- e.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve ends with %v", err)
		}
	})
	return l.Addr().String()
}

// Serve is an exporter past IMPORT: it serves d on conn until the test ends or
// what it returns is called. It does not close d.
func Serve(t testing.TB, conn net.Conn, devid uint32, d usb.Device) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		usbip.ServeDevice(ctx, conn, devid, d, nil)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}
