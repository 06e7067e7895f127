package policy

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// depmod writes what the real one writes of a few modules.
func depmod(t *testing.T) Host {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.alias": "# Aliases extracted from modules themselves.\n" +
			"alias pci:v00001234d* other\n" +
			"alias usb:v*p*d*dc*dsc*dp*ic03isc*ip*in* usbhid\n" +
			"alias usb:v1234pABCDd*dc*dsc*dp*ic*isc*ip*in* cable\n" +
			"alias usb:v1234pABCEd*dc*dsc*dp*ic*isc*ip*in* another\n" +
			"alias usb:v1234p*d*dc*dsc*dp*icFFisc01ip09in02* modem\n" +
			"alias usb:v1234pABCDd001[0-9]dc*dsc*dp*ic*isc*ip*in* ums_stick\n" +
			"alias usb:v1234pABCDd*dc*dsc*dp*ic*isc*ip*in* ftdi_sio\n" +
			"alias usb:v17CCp0815d*dc*dsc*dp*ic*isc*ip*in* snd_usb_caiaq\n" +
			"alias hid:b*g*v*p* hid_generic\n" +
			"alias hid:b0003g*v00001234p0000BBBB hid_asus\n" +
			"alias hid:b0003g0101v00001234p* wacom\n",
		"modules.dep": "kernel/drivers/hid/usbhid/usbhid.ko.xz: kernel/drivers/hid/hid.ko.xz\n" +
			"kernel/drivers/net/usb/cable.ko.xz: kernel/drivers/net/usb/usbnet.ko.xz\n" +
			"kernel/drivers/net/usb/another.ko.xz:\n" +
			"kernel/drivers/net/usb/modem.ko:\n" +
			"kernel/drivers/usb/storage/ums-stick.ko.zst: kernel/drivers/usb/storage/usb-storage.ko.zst\n" +
			"kernel/drivers/usb/serial/ftdi_sio.ko.xz:\n" +
			"kernel/sound/usb/caiaq/snd-usb-caiaq.ko.xz: kernel/sound/core/snd.ko.xz\n" +
			"kernel/drivers/hid/hid-asus.ko.xz: kernel/drivers/hid/hid.ko.xz\n" +
			"kernel/drivers/hid/hid-generic.ko.xz: kernel/drivers/hid/hid.ko.xz\n" +
			"kernel/drivers/hid/wacom.ko.xz: kernel/drivers/hid/hid.ko.xz\n",
	} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return Host{Modules: dir}
}

func TestClaims(t *testing.T) {
	h := depmod(t)
	network, storage := Claim{"cable", Network}, Claim{"ums_stick", Storage}
	for name, tt := range map[string]struct {
		d     emulate.Description
		class uint8
		want  []Claim
	}{
		"by its number":          {emulate.Description{Vendor: 0x1234, Product: 0xabcd}, classSmartCard, []Claim{network}},
		"by number and release":  {emulate.Description{Vendor: 0x1234, Product: 0xabcd, Version: 0x0015}, classSmartCard, []Claim{network, storage}},
		"of another number":      {emulate.Description{Vendor: 0x1234, Product: 0xabcf}, classSmartCard, nil},
		"of another vendor":      {emulate.Description{Vendor: 0x1235, Product: 0xabcd}, classSmartCard, nil},
		"a pad that has keys":    {emulate.Description{Vendor: 0x1234, Product: 0xbbbb}, classHID, []Claim{{"hid_asus", Keyboard}}},
		"a sound card with keys": {emulate.Description{Vendor: 0x17cc, Product: 0x0815}, classVendor, []Claim{{"snd_usb_caiaq", Keyboard}}},
		"the same without HID":   {emulate.Description{Vendor: 0x1234, Product: 0xbbbb}, classSmartCard, nil},
		"a tablet":               {emulate.Description{Vendor: 0x1234, Product: 0xaaaa}, classHID, nil},
	} {
		tt.d.Configurations = []emulate.Configuration{{Interfaces: []emulate.Interface{{Class: tt.class}}}}
		d, err := tt.d.Build(usb.SpeedHigh)
		must.OK(t, err)
		got, err := h.Claims(d)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}

	// Some claim only an interface of a class or a number, in any setting.
	third := []emulate.Interface{{}, {Number: 1}, {Number: 2}, {Number: 2, Alternate: 1, Class: 0xff, SubClass: 1, Protocol: 9}}
	d, err := emulate.Description{Vendor: 0x1234, Product: 1, Configurations: []emulate.Configuration{{Interfaces: third}}}.Build(usb.SpeedHigh)
	must.OK(t, err)
	got, err := h.Claims(d)
	if diff := cmp.Diff([]Claim{{"modem", Network}}, got); err != nil || diff != "" {
		t.Errorf("an interface in another setting: %v\n%s", err, diff)
	}
	must.OK(t, h.ClaimsKnown())
	none := Host{Modules: t.TempDir()}
	if got, err := none.Claims(d); got != nil || err != nil {
		t.Errorf("where depmod has not run: %v, %v", got, err)
	}
	if err := none.ClaimsKnown(); err == nil || !strings.Contains(err.Error(), "run depmod") {
		t.Errorf("where depmod has not run: %v", err)
	}
	must.OK(t, os.Remove(filepath.Join(h.Modules, "modules.dep")))
	must.Is(t, h.ClaimsKnown(), fs.ErrNotExist)
}

func TestClaimedDeviceIsRefused(t *testing.T) {
	d := device(t, [3]uint8{}, iface(0x0b, 0, 0))
	claims, err := depmod(t).Claims(d)
	must.OK(t, err)
	guarded := Guarded()
	err = guarded.Judge(usb.SpeedHigh, d, 0, claims...)
	const want = "device 1234:abcd is a network interface (class network) by its numbers, to the driver cable: " +
		"the controller does not allow that (make one with --allow network)"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	for _, allow := range []string{"network", "1234:abcd"} {
		p, err := guarded.With([]string{allow}, nil)
		must.OK(t, err)
		if err := p.Judge(usb.SpeedHigh, d, 0, claims...); err != nil {
			t.Errorf("with %s allowed: %v", allow, err)
		}
	}
}
