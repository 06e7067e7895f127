//go:build !race

package usbip

import (
	"context"
	"net"
	"testing"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// TestHotPathsDoNotAllocate counts for both roles together. With the race
// detector pools forget what they hold, and it could not pass.
func TestHotPathsDoNotAllocate(t *testing.T) {
	urbs := map[string]usb.URB{
		"control IN of 18 bytes": {Endpoint: usb.DirIn, Setup: usb.GetDescriptor(usb.DescDevice, 0, 0, 18), Buffer: make([]byte, 18)},
		"interrupt IN":           {Type: usb.Bulk, Endpoint: bulkIn, Buffer: make([]byte, 8)},
		"bulk IN of 64 KiB":      bulkInURB(64 << 10),
		"bulk OUT of 64 KiB":     bulkOutURB(64 << 10),
		"isochronous IN":         isoInURB(192, 192, 192, 192, 192, 192, 192, 192),
	}
	for kind, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){"tcp": tcpPair, "unix": unixPair} {
		for name, urb := range urbs {
			t.Run(kind+" "+name, func(t *testing.T) {
				conn, theirs := pair(t)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- ServeDevice(ctx, theirs, benchDevID, newFakeDevice(), nil) }()
				defer func() { cancel(); <-done }()
				i, err := NewImporter(ctx, conn, benchDevID, usb.SpeedHigh, nil)
				must.OK(t, err)
				defer i.Close()
				configure(t, i)
				p := newPump(i, 4, urb)
				p.run(t, 100)
				if n := testing.AllocsPerRun(100, func() { p.run(t, 10) }); n > 0 {
					t.Errorf("%v allocations for 10 transfers", n)
				}
			})
		}
	}
}
