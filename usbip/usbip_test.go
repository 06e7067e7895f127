package usbip

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// startExporter serves devices on loopback and returns the address.
func startExporter(t testing.TB, e *Exporter) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	return serveOn(t, e, l)
}

// serveOn has e serve until the end of the test, and returns the address.
func serveOn(t testing.TB, e *Exporter, l net.Listener) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve ended with %v", err)
		}
	})
	return l.Addr().String()
}

func importFrom(t testing.TB, addr, busid string, opts *ImportOptions) *Importer {
	t.Helper()
	conn, err := Dial(t.Context(), addr)
	must.OK(t, err)
	i, err := Import(t.Context(), conn, busid, opts)
	must.OK(t, err)
	t.Cleanup(func() { i.Close() })
	return i
}

func configure(t testing.TB, dev usb.Device) {
	t.Helper()
	_, err := usb.ControlTransfer(t.Context(), dev, usb.SetConfiguration(1), nil)
	must.OK(t, err)
}

func TestImportExport(t *testing.T) {
	must.NotLeak(t)
	dev := newFakeDevice()
	e := &Exporter{}
	must.OK(t, e.Add("1-1", dev))
	addr := startExporter(t, e)
	i := importFrom(t, addr, "1-1", nil)
	if got := i.Descriptors().Product(); got != "fake" {
		t.Errorf("product %q", got)
	}
	if err := usb.Do(t.Context(), i, &usb.URB{Type: usb.Bulk, Endpoint: bulkIn, Buffer: make([]byte, 8)}); !errors.Is(err, usb.ErrNoEndpoint) {
		t.Errorf("bulk transfer to an unconfigured device: %v", err)
	}
	configure(t, i)
	for _, n := range []int{0, 1, 63, 64, 512, 4096, 65536, 1e6} {
		u := usb.URB{Type: usb.Bulk, Endpoint: bulkIn, Buffer: make([]byte, n)}
		must.OK(t, usb.Do(t.Context(), i, &u))
		want := make([]byte, n)
		for k := range want {
			want[k] = byte(k)
		}
		if u.Actual != n || !bytes.Equal(u.Buffer, want) {
			t.Errorf("bulk IN of %d bytes: %d moved, or not the right ones", n, u.Actual)
		}
		u = usb.URB{Type: usb.Bulk, Endpoint: bulkOut, Buffer: want}
		must.OK(t, usb.Do(t.Context(), i, &u))
		if u.Actual != n {
			t.Errorf("bulk OUT of %d bytes: %d moved", n, u.Actual)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-dev.arrived; cancel() }()
	u := usb.URB{Type: usb.Interrupt, Endpoint: intrIn, Buffer: make([]byte, 8)}
	must.Is(t, usb.Do(ctx, i, &u), context.Canceled)
	if u.Status != usb.StatusCancelled {
		t.Errorf("cancelled transfer ended with %v", u.Status)
	}
	must.OK(t, i.Reset(t.Context()))
	if dev.resetCount() != 1 {
		t.Errorf("%d resets", dev.resetCount())
	}
	must.Is(t, usb.Do(t.Context(), i, &usb.URB{Type: usb.Bulk, Endpoint: bulkIn}), usb.ErrNoEndpoint)
	must.OK(t, i.Close())
	must.Is(t, i.Err(), net.ErrClosed)
}
