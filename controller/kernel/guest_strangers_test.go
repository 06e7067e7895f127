//go:build guest

package kernel_test

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// A device whose exporter says nothing, or only what cancels, is refused or can
// be detached, and another controller's device works all the time.
func TestGuestStrangers(t *testing.T) {
	must.NotLeak(t)
	d := kernel.New(kernel.Options{Dir: must.TempDir(t), EnumerateTimeout: time.Second, KernelTimeout: patient})
	t.Cleanup(func() { must.OK(t, d.Close()) })
	s, err := emulate.NewScanner(emulate.Options{Speed: usb.SpeedHigh})
	must.OK(t, err)
	p := exportDevice(t, s)
	p.Controller = 1
	a, err := newGuestDriver(t).Attach(t.Context(), p)
	must.OK(t, err)
	t.Cleanup(a.Detach)
	free := freePorts(t)

	for name, stranger := range map[string]func(peer net.Conn){
		"silent":       func(peer net.Conn) { mute(peer, false) },
		"only unlinks": func(peer net.Conn) { mute(peer, true) },
		"silent once it is known": func(peer net.Conn) {
			mimic(peer, newDevice(t, "loopback"), func(c *usbip.CmdSubmit, _ *[]byte) bool {
				return usb.ParseSetup(c.Setup).Request == usb.ReqGetDescriptor
			})
			mute(peer, true)
		},
	} {
		here, peer := must.Connect(t)
		go stranger(peer)
		attached := make(chan error, 1)
		var b controller.Attachment
		go func() {
			var err error
			b, err = d.Attach(t.Context(), plug(here))
			attached <- err
		}()
		for waiting := true; waiting; {
			scan(t, a.Path(), s)
			select {
			case err := <-attached:
				t.Logf("%s: %v", name, err)
				if err == nil {
					b.Detach()
				} else if name != "silent once it is known" {
					must.Is(t, err, os.ErrDeadlineExceeded)
				}
				waiting = false
			default:
			}
		}
		peer.Close()
	}

	// The kernel waits for one that has its connection, until that is shut down.
	impatient := kernel.New(kernel.Options{Dir: must.TempDir(t), KernelTimeout: time.Second})
	t.Cleanup(func() { must.OK(t, impatient.Close()) })
	here, peer := must.Connect(t)
	go mute(peer, false)
	c, _ := newController(t, impatient.Direct())
	_, err = c.Attach(t.Context(), 0, plug(here))
	must.Is(t, err, syscall.ETIMEDOUT)
	if n := freePorts(t); n != free {
		t.Errorf("%d ports are free, %d were", n, free)
	}
	scan(t, a.Path(), s)
}

// What is attached and detached again and again leaves nothing.
func TestGuestRounds(t *testing.T) {
	must.NotLeak(t)
	before := freePorts(t)
	fds := len(must.Descriptors(t))
	d := newGuestDriver(t)
	for _, driver := range []controller.Driver{d, d.Direct()} {
		for range 5 {
			s, err := emulate.NewScanner(emulate.Options{Speed: usb.SpeedHigh})
			must.OK(t, err)
			here, peer := must.Connect(t)
			stop := usbiptest.Serve(t, peer, devid, s)
			a, err := driver.Attach(t.Context(), plug(here))
			must.OK(t, err)
			a.Detach()
			stop()
			s.Close()
		}
	}
	if n := freePorts(t); n != before {
		t.Errorf("%d ports are free, %d were", n, before)
	}
	noChildren(t)
	const ofDriver = 3 // directories of sysfs and uevents
	must.Become(t, "few open descriptors", func() bool { return len(must.Descriptors(t)) <= fds+ofDriver })
}
