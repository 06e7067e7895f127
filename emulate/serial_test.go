package emulate

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/usbns/usbns/usb"
)

func newTestSerial(t *testing.T) *Serial {
	t.Helper()
	s, err := NewSerial(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	mustControl(t, s, usb.SetConfiguration(1), nil)
	return s
}

// receive fetches n bytes as a driver does: in transfers that may be short.
func (s *Serial) receive(t *testing.T, n int) []byte {
	t.Helper()
	var got []byte
	for len(got) < n {
		got = append(got, mustMove(t, s, serialIn, usb.Bulk, make([]byte, 1024))...)
	}
	return got
}

func TestSerialEchoes(t *testing.T) {
	s := newTestSerial(t)
	for _, n := range []int{1, 512, 1024, 1025} {
		data := bytes.Repeat([]byte{byte(n), 7, 9}, n)[:n]
		mustMove(t, s, serialOut, usb.Bulk, data)
		if got := s.receive(t, n); !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back changed", n)
		}
	}
}

func TestSerialWaitsWhenNobodyFetches(t *testing.T) {
	s := newTestSerial(t)
	data := bytes.Repeat([]byte("0123456789"), 20_000)
	u := usb.URB{Endpoint: serialOut, Type: usb.Bulk, Buffer: data}
	done := begin(t, s.Device, &u)
	select {
	case <-done:
		t.Error("200,000 bytes were taken with nobody to fetch them")
	default:
	}
	if got := s.receive(t, len(data)); !bytes.Equal(got, data) {
		t.Error("data came back changed")
	}
	<-done
}

func TestSerialLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSerial(t)
		sent := make(chan error, 1)
		go func() { sent <- s.Tell(t.Context(), "hello") }()
		if got := s.receive(t, 7); string(got) != "hello\r\n" {
			t.Errorf("host got %q", got)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		go func() { sent <- s.Tell(ctx, "lost") }()
		synctest.Wait()
		cancel()
		if err := <-sent; !errors.Is(err, context.Canceled) {
			t.Errorf("SendLine: %v, want %v", err, context.Canceled)
		}
		mustMove(t, s, serialOut, usb.Bulk, []byte("x"))
		if got := s.receive(t, 1); string(got) != "x" {
			t.Errorf("after a line that was given up the host got %q", got)
		}

		go func() { sent <- s.Tell(t.Context(), "lost") }()
		synctest.Wait()
		mustControl(t, s, usb.SetConfiguration(0), nil)
		if err := <-sent; !errors.Is(err, ErrNotConfigured) {
			t.Errorf("SendLine: %v, want %v", err, ErrNotConfigured)
		}
	})
}

func TestSerialRequests(t *testing.T) {
	s := newTestSerial(t)
	set := usb.Setup{RequestType: usb.KindClass | usb.ToInterface, Request: cdcSetLineCoding, Length: 7}
	get := usb.Setup{RequestType: usb.DirIn | usb.KindClass | usb.ToInterface, Request: cdcGetLineCoding, Length: 7}
	if got := mustControl(t, s, get, make([]byte, 7)); !bytes.Equal(got, []byte{0, 0xc2, 1, 0, 0, 0, 8}) {
		t.Errorf("line coding at first: % x", got)
	}
	coding := []byte{0x80, 0x25, 0, 0, 2, 1, 7} // 9600 baud, 2 stop bits, odd parity, 7 bits
	mustControl(t, s, set, coding)
	if got := mustControl(t, s, get, make([]byte, 7)); !bytes.Equal(got, coding) {
		t.Errorf("line coding: % x, want % x", got, coding)
	}
	for name, r := range map[string]usb.Setup{
		"short line coding": {RequestType: set.RequestType, Request: cdcSetLineCoding, Length: 6},
		"data interface":    {RequestType: get.RequestType, Request: cdcGetLineCoding, Index: 1, Length: 7},
		"break":             {RequestType: set.RequestType, Request: 0x23},
	} {
		if _, err := usb.ControlTransfer(t.Context(), s, r, make([]byte, r.Length)); !errors.Is(err, usb.StatusStall.Err()) {
			t.Errorf("%s: %v, want a stall", name, err)
		}
	}
}

// Carrier comes and goes with DTR.
func TestSerialCarrier(t *testing.T) {
	s := newTestSerial(t)
	for _, dtr := range []uint16{1, 0, 3} {
		mustControl(t, s, usb.Setup{RequestType: usb.KindClass | usb.ToInterface, Request: cdcSetControlLineState, Value: dtr}, nil)
		want := []byte{0xa1, 0x20, 0, 0, 0, 0, 2, 0, byte(dtr&1) * 3, 0}
		if got := mustMove(t, s, serialEvent, usb.Interrupt, make([]byte, 16)); !bytes.Equal(got, want) {
			t.Errorf("DTR %d: % x, want % x", dtr, got, want)
		}
	}
}
