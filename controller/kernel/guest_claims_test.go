//go:build guest

//vmexec:modules cdc_subset

package kernel_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

// A device that says it is a smart card reader, and has the numbers of a network
// cable, is a network interface to the kernel: so it is to the policy, where depmod
// has told of the driver.
func TestGuestDriverClaimsNumbers(t *testing.T) {
	must.NotLeak(t)
	desc, err := emulate.Description{
		Vendor: 0x049f, Product: 0x505a,
		Configurations: []emulate.Configuration{{Interfaces: []emulate.Interface{{
			Class: 0x0b,
			Endpoints: []emulate.Endpoint{
				{Address: 0x81, Type: usb.Bulk, MaxPacket: 512}, {Address: 0x02, Type: usb.Bulk, MaxPacket: 512},
			},
		}}}},
	}.Build(usb.SpeedHigh)
	must.OK(t, err)
	var log bytes.Buffer
	attach := func() error {
		log.Reset()
		dev, err := emulate.New(emulate.Config{Speed: usb.SpeedHigh, Descriptors: desc})
		must.OK(t, err)
		d := kernel.New(kernel.Options{
			Dir: must.TempDir(t), EnumerateTimeout: patient, KernelTimeout: patient,
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		defer d.Close()
		var table controller.Table
		defer table.Close()
		made, err := table.Create(controller.Config{Driver: d, Policy: policy.Guarded()}, 1)
		must.OK(t, err)
		if _, err := made[0].Attach(t.Context(), 0, exportDevice(t, dev)); err != nil {
			return err
		}
		must.Become(t, "a network interface", func() bool {
			found, err := filepath.Glob(filepath.Join(made[0].Ports()[0].Path, "*:1.0/net/*"))
			must.OK(t, err)
			return len(found) == 1
		})
		must.OK(t, made[0].Detach(0))
		return nil
	}
	must.OK(t, attach())
	if text := log.String(); !strings.Contains(text, "run depmod") {
		t.Errorf("logged is %q", text)
	}

	var name unix.Utsname
	must.OK(t, unix.Uname(&name))
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(name.Release[:]))
	must.OK(t, os.MkdirAll(dir, 0o755))
	for file, line := range map[string]string{
		"modules.alias": "alias usb:v049Fp505Ad*dc*dsc*dp*ic*isc*ip*in* cdc_subset\n",
		"modules.dep":   "kernel/drivers/net/usb/cdc_subset.ko: kernel/drivers/net/usb/usbnet.ko\n",
	} {
		must.OK(t, os.WriteFile(filepath.Join(dir, file), []byte(line), 0o644))
		defer os.Remove(filepath.Join(dir, file))
	}
	must.Is(t, attach(), controller.ErrRefused)
	if text := log.String(); text != "" {
		t.Errorf("logged is %q", text)
	}
}
