package emulate

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/usbns/usbns/usb"
)

// newTestScanner makes a scanner that is configured.
func newTestScanner(t *testing.T) *Scanner {
	t.Helper()
	s, err := NewScanner(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	mustControl(t, s, usb.SetConfiguration(1), nil)
	return s
}

func mustControl(t *testing.T, d usb.Device, s usb.Setup, data []byte) []byte {
	t.Helper()
	n, err := usb.ControlTransfer(t.Context(), d, s, data)
	if err != nil {
		t.Fatalf("%v: %v", s, err)
	}
	return data[:n]
}

// A host polls a HID device and keeps what it gets.
type host struct {
	d       usb.Device
	urb     usb.URB
	reports [][]byte
	stopped chan struct{}
}

func poll(t *testing.T, d usb.Device) *host {
	t.Helper()
	h := &host{d: d, stopped: make(chan struct{})}
	h.urb = usb.URB{Endpoint: hidIn, Type: usb.Interrupt, Buffer: make([]byte, 8), Complete: h.complete}
	if err := d.Submit(&h.urb); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) complete(u *usb.URB) {
	if u.Status == usb.StatusOK {
		h.reports = append(h.reports, bytes.Clone(u.Buffer[:u.Actual]))
		if h.d.Submit(u) == nil {
			return
		}
	}
	close(h.stopped)
}

// stop returns all the host has seen.
func (h *host) stop() [][]byte {
	h.d.Cancel(&h.urb)
	<-h.stopped
	return h.reports
}

// text reads reports as a driver would: what is newly down was typed.
func text(t *testing.T, reports [][]byte) string {
	t.Helper()
	keys := make(map[keyReport]rune)
	for c := rune(0); c < 0x7f; c++ {
		if k, ok := keyFor(c); ok && c != '\r' {
			keys[k] = c
		}
	}
	var typed []rune
	for i, b := range reports {
		r := keyReport(b)
		if (r == keyReport{}) != (i%2 == 1) {
			t.Fatalf("report %d is % x: keys must go down and up in turn", i, r)
		}
		if r != (keyReport{}) {
			typed = append(typed, keys[r])
		}
	}
	return string(typed)
}

func TestScanTypesTextAndEnter(t *testing.T) {
	s := newTestScanner(t)
	h := poll(t, s)
	codes := []string{
		"4006381333931",
		"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ",
		"0123456789)!@#$%^&*(",
		"`-=[]\\;',./~_+{}|:\"<>?\t",
		"",
	}
	want := ""
	for _, code := range codes {
		if err := s.Scan(t.Context(), code); err != nil {
			t.Fatal(err)
		}
		want += code + "\n"
	}
	if got := text(t, h.stop()); got != want {
		t.Errorf("host saw %q, want %q", got, want)
	}
}

// The usages of a few keys, from the HID usage tables and not from our own
// table.
func TestScanUsages(t *testing.T) {
	for c, want := range map[rune]keyReport{
		'a': {0, 0, 0x04}, 'Z': {2, 0, 0x1d}, '1': {0, 0, 0x1e}, '0': {0, 0, 0x27},
		')': {2, 0, 0x27}, '-': {0, 0, 0x2d}, '\\': {0, 0, 0x31}, ';': {0, 0, 0x33},
		':': {2, 0, 0x33}, '\'': {0, 0, 0x34}, '~': {2, 0, 0x35}, '/': {0, 0, 0x38}, ' ': {0, 0, 0x2c},
	} {
		if got, ok := keyFor(c); !ok || got != want {
			t.Errorf("%q is % x, want % x", c, got, want)
		}
	}
}

func TestScanRefusesWhatCannotBeTyped(t *testing.T) {
	s := newTestScanner(t)
	h := poll(t, s)
	for code, want := range map[string]KeyError{
		"12€4":   {'€', 2},
		"a\x00b": {0, 1},
		"\x7f":   {0x7f, 0},
		"\xff":   {'�', 0},
	} {
		err := s.Scan(t.Context(), code)
		key, ok := errors.AsType[*KeyError](err)
		if !ok || *key != want {
			t.Errorf("Scan(%q): %v, want %v", code, err, &want)
		}
	}
	if got := h.stop(); len(got) != 0 {
		t.Errorf("host saw % x", got)
	}
}

func TestScanNeedsAHost(t *testing.T) {
	s, err := NewScanner(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Scan(t.Context(), "1"); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("unconfigured: %v, want %v", err, ErrNotConfigured)
	}
	s.Close()
	if err := s.Scan(t.Context(), "1"); !errors.Is(err, usb.ErrGone) {
		t.Errorf("closed: %v, want %v", err, usb.ErrGone)
	}
}

// A Scan that nobody takes ends with whatever happens to the device.
func TestScanEnds(t *testing.T) {
	stopped := errors.New("stopped")
	for name, c := range map[string]struct {
		end  func(*testing.T, *Scanner, context.CancelCauseFunc)
		want error
	}{
		"context": {func(_ *testing.T, _ *Scanner, cancel context.CancelCauseFunc) { cancel(stopped) }, stopped},
		"close":   {func(_ *testing.T, s *Scanner, _ context.CancelCauseFunc) { s.Close() }, usb.ErrGone},
		"reset":   {func(_ *testing.T, s *Scanner, _ context.CancelCauseFunc) { s.Reset(context.Background()) }, ErrNotConfigured},
		"deselect": {func(t *testing.T, s *Scanner, _ context.CancelCauseFunc) {
			mustControl(t, s, usb.SetConfiguration(0), nil)
		}, ErrNotConfigured},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestScanner(t)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				result := make(chan error, 2)
				go func() { result <- s.Scan(ctx, "12") }()
				go func() { result <- s.Scan(ctx, "12") }() // waits for its turn
				synctest.Wait()
				c.end(t, s, cancel)
				if err := <-result; !errors.Is(err, c.want) {
					t.Errorf("Scan: %v, want %v", err, c.want)
				}
				if err := <-result; !errors.Is(err, c.want) {
					t.Errorf("Scan in waiting: %v, want %v", err, c.want)
				}
			})
		})
	}
}

// A key that went down comes up, though nobody scans any more.
func TestScanAbandonedLeavesNoKeyDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestScanner(t)
		abandonScan(t, s, func() {
			buf := make([]byte, 8)
			u := usb.URB{Endpoint: hidIn, Type: usb.Interrupt, Buffer: buf}
			if err := usb.Do(t.Context(), s, &u); err != nil || buf[2] != 0x1e {
				t.Fatalf("first report % x, %v", buf, err)
			}
		})
		abandonScan(t, s, func() {}) // one of which the host sees nothing
		h := poll(t, s)
		if err := s.Scan(t.Context(), "3"); err != nil {
			t.Fatal(err)
		}
		got := h.stop()
		if len(got) == 0 || keyReport(got[0]) != (keyReport{}) {
			t.Fatalf("after the key that is down came % x", got)
		}
		if got := text(t, got[1:]); got != "3\n" {
			t.Errorf("then %q", got)
		}
	})
}

// A Scan that is cancelled while the host takes what is there succeeds only if
// the host has taken all, and leaves no key down in any case.
func TestScanCancelRacesTheHost(t *testing.T) {
	for range 200 {
		s := newTestScanner(t)
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- s.Scan(ctx, "1") }()
		// The first report shows that the Scan has begun.
		u := usb.URB{Endpoint: hidIn, Type: usb.Interrupt, Buffer: make([]byte, 8)}
		if err := usb.Do(t.Context(), s, &u); err != nil {
			t.Fatal(err)
		}
		cancel()
		h := poll(t, s)
		err := <-result
		rest := h.stop()
		if err == nil && len(rest) != 3 || len(rest) == 0 || keyReport(rest[len(rest)-1]) != (keyReport{}) {
			t.Errorf("%v, and then the host took % x", err, rest)
		}
	}
}

// abandonScan cancels a Scan after the host has done something.
func abandonScan(t *testing.T, s *Scanner, host func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- s.Scan(ctx, "12") }()
	synctest.Wait()
	host()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatalf("Scan: %v", err)
	}
}

func TestScannerRequests(t *testing.T) {
	s := newTestScanner(t)
	in := func(kind, request uint8, value, length uint16) usb.Setup {
		return usb.Setup{RequestType: usb.DirIn | kind | usb.ToInterface, Request: request, Value: value, Length: length}
	}
	out := func(request uint8, value, length uint16) usb.Setup {
		return usb.Setup{RequestType: usb.KindClass | usb.ToInterface, Request: request, Value: value, Length: length}
	}
	for _, c := range []struct {
		name  string
		setup usb.Setup
		data  []byte // sent
		want  []byte // received
	}{
		{"report descriptor", in(0, usb.ReqGetDescriptor, hidDescReport<<8, 255), nil, keyboardReport},
		{"HID descriptor", in(0, usb.ReqGetDescriptor, hidDescHID<<8, 9), nil, s.hid.classDescriptor()},
		{"LEDs on", out(hidSetReport, hidOutput<<8, 1), []byte{5}, nil},
		{"LEDs", in(usb.KindClass, hidGetReport, hidOutput<<8, 8), nil, []byte{5}},
		{"keys", in(usb.KindClass, hidGetReport, hidInput<<8, 8), nil, make([]byte, 8)},
		{"idle", out(hidSetIdle, 0, 0), nil, nil},
		{"idle rate", in(usb.KindClass, hidGetIdle, 0, 1), nil, []byte{0}},
		{"report protocol at first", in(usb.KindClass, hidGetProtocol, 0, 1), nil, []byte{1}},
		{"boot protocol", out(hidSetProtocol, 0, 0), nil, nil},
		{"boot protocol now", in(usb.KindClass, hidGetProtocol, 0, 1), nil, []byte{0}},
	} {
		data := append(c.data, make([]byte, int(c.setup.Length)-len(c.data))...)
		if got := mustControl(t, s, c.setup, data); c.setup.In() && !bytes.Equal(got, c.want) {
			t.Errorf("%s: % x, want % x", c.name, got, c.want)
		}
	}
	for name, setup := range map[string]usb.Setup{
		"feature report":    in(usb.KindClass, hidGetReport, hidFeature<<8, 8),
		"numbered report":   in(usb.KindClass, hidGetReport, hidInput<<8|1, 8),
		"LEDs of two bytes": out(hidSetReport, hidOutput<<8, 2),
		"keys from outside": out(hidSetReport, hidInput<<8, 8),
		"repeated reports":  out(hidSetIdle, 0x0100, 0),
		"third protocol":    out(hidSetProtocol, 2, 0),
		"other interface":   {RequestType: usb.DirIn | usb.KindClass | usb.ToInterface, Request: hidGetIdle, Index: 1, Length: 1},
		"physical":          in(0, usb.ReqGetDescriptor, 0x2300, 8),
	} {
		_, err := usb.ControlTransfer(t.Context(), s, setup, make([]byte, setup.Length))
		if !errors.Is(err, usb.StatusStall.Err()) {
			t.Errorf("%s: %v, want a stall", name, err)
		}
	}
}

// A scanner looks at the Caps Lock LED, so that letters come out as they are on
// the label.
func TestScanWithCapsLock(t *testing.T) {
	s := newTestScanner(t)
	mustControl(t, s, usb.Setup{
		RequestType: usb.KindClass | usb.ToInterface, Request: hidSetReport, Value: hidOutput << 8, Length: 1,
	}, []byte{ledCapsLock})
	h := poll(t, s)
	if err := s.Scan(t.Context(), "aB1!"); err != nil {
		t.Fatal(err)
	}
	if got := text(t, h.stop()); got != "Ab1!\n" {
		t.Errorf("keys of %q, want those of %q", got, "Ab1!\n")
	}
}
