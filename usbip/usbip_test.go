package usbip

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/usbns/usbns/usb"
)

// noLeaks fails the test if it ends with more goroutines of this package than
// it started with.
func noLeaks(t testing.TB) {
	t.Helper()
	before := len(goroutines())
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for len(goroutines()) > before {
			if time.Now().After(deadline) {
				t.Errorf("goroutines are left:\n%s", strings.Join(goroutines(), "\n\n"))
				return
			}
			runtime.Gosched()
		}
	})
}

// goroutines returns the stacks of those that run this package's code.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var ours []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "usbip.(*") {
			ours = append(ours, g)
		}
	}
	return ours
}

// startExporter serves devices on loopback and returns the address.
func startExporter(t testing.TB, e *Exporter) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
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
	must(t, err)
	i, err := Import(t.Context(), conn, busid, opts)
	must(t, err)
	t.Cleanup(func() { i.Close() })
	return i
}

func configure(t testing.TB, dev usb.Device) {
	t.Helper()
	_, err := usb.ControlTransfer(t.Context(), dev, usb.SetConfiguration(1), nil)
	must(t, err)
}

func TestImportExport(t *testing.T) {
	noLeaks(t)
	dev := newFakeDevice()
	e := &Exporter{}
	must(t, e.Add("1-1", dev))
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
		must(t, usb.Do(t.Context(), i, &u))
		want := make([]byte, n)
		for k := range want {
			want[k] = byte(k)
		}
		if u.Actual != n || !bytes.Equal(u.Buffer, want) {
			t.Errorf("bulk IN of %d bytes: %d moved, or not the right ones", n, u.Actual)
		}
		u = usb.URB{Type: usb.Bulk, Endpoint: bulkOut, Buffer: want}
		must(t, usb.Do(t.Context(), i, &u))
		if u.Actual != n {
			t.Errorf("bulk OUT of %d bytes: %d moved", n, u.Actual)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-dev.arrived; cancel() }()
	u := usb.URB{Type: usb.Interrupt, Endpoint: intrIn, Buffer: make([]byte, 8)}
	wantIs(t, usb.Do(ctx, i, &u), context.Canceled)
	if u.Status != usb.StatusCancelled {
		t.Errorf("cancelled transfer ended with %v", u.Status)
	}
	must(t, i.Reset(t.Context()))
	if dev.resetCount() != 1 {
		t.Errorf("%d resets", dev.resetCount())
	}
	wantIs(t, usb.Do(t.Context(), i, &usb.URB{Type: usb.Bulk, Endpoint: bulkIn}), usb.ErrNoEndpoint)
	must(t, i.Close())
	wantIs(t, i.Err(), net.ErrClosed)
}
