//go:build guest

//vmexec:modules vhci-hcd usbhid hid-generic evdev

package kernel_test

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// The guest's own kernel, in the place of a fake.
func newGuestDriver(t testing.TB) *kernel.Driver {
	t.Helper()
	d := kernel.New(kernel.Options{Dir: must.TempDir(t), EnumerateTimeout: 30 * time.Second, KernelTimeout: patient})
	t.Cleanup(func() { must.OK(t, d.Close()) })
	return d
}

// exportDevice serves d on this machine.
func exportDevice(t testing.TB, d usb.Device) controller.Plug {
	t.Helper()
	here, peer := must.Connect(t)
	t.Cleanup(func() { d.Close() })
	usbiptest.Serve(t, peer, devid, d)
	p := plug(here)
	p.Speed = d.Speed()
	return p
}

// freePorts returns how many ports of the first controller are free.
func freePorts(t testing.TB) int {
	t.Helper()
	k, err := vhci.Open(0)
	must.OK(t, err)
	defer k.Close()
	ports, err := k.Ports(0)
	must.OK(t, err)
	n := 0
	for _, p := range ports {
		if p.Free() {
			n++
		}
	}
	return n
}

// scan has a scanner scan a code and reads it where a program would.
func scan(t testing.TB, path string, s *emulate.Scanner) {
	t.Helper()
	f := openInput(t, path)
	defer f.Close()
	told := make(chan error, 1)
	go func() { told <- s.Tell(t.Context(), "42") }()
	var keys []uint16
	for len(keys) < 3 {
		var e struct {
			Sec, Usec  int64
			Type, Code uint16
			Value      int32
		}
		must.OK(t, binary.Read(f, binary.NativeEndian, &e))
		if e.Type == 1 && e.Value == 1 {
			keys = append(keys, e.Code)
		}
	}
	must.OK(t, <-told)
	if keys[0] != 5 || keys[1] != 3 || keys[2] != 28 { // KEY_4, KEY_2, KEY_ENTER
		t.Errorf("keys %v", keys)
	}
}

// A checked device works like any other, and leaves nothing.
func TestGuestScanner(t *testing.T) {
	must.NotLeak(t)
	d := newGuestDriver(t)
	s, err := emulate.NewScanner(emulate.Options{})
	must.OK(t, err)
	p := exportDevice(t, s)
	var shown string
	p.Ready = func(a controller.Attachment) error {
		shown = a.Path()
		if text, err := os.ReadFile(filepath.Join(shown, "bConfigurationValue")); err != nil || len(text) > 1 {
			t.Errorf("it is configured before it is ready: %q, %v", text, err)
		}
		return nil
	}
	a, err := d.Attach(t.Context(), p)
	must.OK(t, err)
	if a.Path() != shown {
		t.Errorf("path %s, shown %s", a.Path(), shown)
	}
	scan(t, a.Path(), s)
	a.Detach()
	if _, err := os.Lstat(shown); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the detach: %v", err)
	}
	if n := freePorts(t); n != 30 {
		t.Errorf("%d ports are free", n)
	}
}
