package emulate

import (
	"bytes"
	"strings"
	"testing"

	"github.com/usbns/usbns/usb"
)

func TestBuildBytes(t *testing.T) {
	d, err := Description{
		Vendor: 0x1209, Product: 0x0010, Version: 0x0102,
		Class: 0xef, SubClass: 2, Protocol: 1,
		ManufacturerName: "Ä", ProductName: "B", SerialNumber: "B",
		Configurations: []Configuration{{
			SelfPowered: true, RemoteWakeup: true, MilliAmps: 99,
			Interfaces: []Interface{{
				Number: 0, Class: 2, SubClass: 2, Protocol: 1, Name: "C",
				Association: &Association{Count: 2, Class: 2, SubClass: 2},
				Extra:       []byte{3, 0x24, 0x7f},
				Endpoints: []Endpoint{
					{Address: 0x81, Type: usb.Interrupt, MaxPacket: 16, Interval: 9},
				},
			}, {
				Number: 1, Class: 1, Endpoints: []Endpoint{
					{Address: 0x02, Type: usb.Isochronous, Sync: 0x0c, MaxPacket: 192, Interval: 4, Audio: true, Extra: []byte{3, 0x25, 1}},
				},
			}, {
				Number: 1, Alternate: 1, Class: 1,
			}},
		}},
	}.Build(usb.SpeedHigh)
	if err != nil {
		t.Fatal(err)
	}
	raw := d.Raw()
	check := func(what string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\n% x, want\n% x", what, got, want)
		}
	}
	check("device", raw.Device, []byte{18, 1, 0, 2, 0xef, 2, 1, 64, 0x09, 0x12, 0x10, 0, 2, 1, 1, 2, 2, 1})
	check("configuration", raw.Configurations[0], bytes.Join([][]byte{
		{9, 2, 66, 0, 2, 1, 0, 0xe0, 50},
		{8, 11, 0, 2, 2, 2, 0, 0},
		{9, 4, 0, 0, 1, 2, 2, 1, 3},
		{3, 0x24, 0x7f},
		{7, 5, 0x81, 3, 16, 0, 9},
		{9, 4, 1, 0, 1, 1, 0, 0, 0},
		{9, 5, 0x02, 0x0d, 192, 0, 4, 0, 0},
		{3, 0x25, 1},
		{9, 4, 1, 1, 0, 1, 0, 0, 0},
	}, nil))
	if len(raw.BOS) != 0 {
		t.Errorf("BOS at high speed: % x", raw.BOS)
	}
	if d.Manufacturer() != "Ä" || d.Product() != "B" || d.String(3) != "C" {
		t.Errorf("strings %q, %q, %q", d.Manufacturer(), d.Product(), d.String(3))
	}
}

func TestBuildForSuperSpeed(t *testing.T) {
	d, err := Description{
		Configurations: []Configuration{{
			MilliAmps: 900,
			Interfaces: []Interface{{
				Endpoints: []Endpoint{
					{Address: 0x81, Type: usb.Bulk, MaxPacket: 1024, Burst: 15},
					{Address: 0x82, Type: usb.Interrupt, MaxPacket: 1024, Burst: 1, Interval: 1},
				},
			}},
		}},
	}.Build(usb.SpeedSuper)
	if err != nil {
		t.Fatal(err)
	}
	if dev := d.Device(); dev.USB != 0x0320 || dev.MaxPacket0 != 9 {
		t.Errorf("bcdUSB %04x, bMaxPacketSize0 %d", dev.USB, dev.MaxPacket0)
	}
	c := d.Configurations()[0]
	if c.MaxPower != 113 { // in units of 8 mA
		t.Errorf("bMaxPower %d, want 113", c.MaxPower)
	}
	e := c.Interfaces[0].Alternates[0].Endpoints
	if e[0].Burst != 15 || e[0].BytesPerInterval != 0 {
		t.Errorf("bulk: burst %d, %d bytes per interval", e[0].Burst, e[0].BytesPerInterval)
	}
	if e[1].Burst != 1 || e[1].BytesPerInterval != 2048 {
		t.Errorf("interrupt: burst %d, %d bytes per interval", e[1].Burst, e[1].BytesPerInterval)
	}
	if len(d.Raw().BOS) != 22 {
		t.Errorf("BOS: % x", d.Raw().BOS)
	}
}

func TestBuildRefuses(t *testing.T) {
	one := []Configuration{{}}
	for want, c := range map[string]struct {
		d     Description
		speed usb.Speed
	}{
		"unknown speed":        {Description{Configurations: one}, usb.SpeedUnknown},
		"wireless speed":       {Description{Configurations: one}, usb.SpeedWireless},
		"126":                  {Description{Configurations: one, ProductName: strings.Repeat("x", 127)}, usb.SpeedFull},
		"501 mA":               {Description{Configurations: []Configuration{{MilliAmps: 501}}}, usb.SpeedFull},
		"9 configurations":     {Description{Configurations: make([]Configuration, 9)}, usb.SpeedFull},
		"0 configurations":     {Description{}, usb.SpeedFull},
		"more than 65535":      {Description{Configurations: []Configuration{{Interfaces: []Interface{{Extra: make([]byte, 65536)}}}}}, usb.SpeedFull},
		"stands twice":         {Description{Configurations: []Configuration{{Interfaces: make([]Interface, 2)}}}, usb.SpeedFull},
		"value 1 stands twice": {Description{Configurations: []Configuration{{Value: 1}, {Value: 1}}}, usb.SpeedFull},
	} {
		if _, err := c.d.Build(c.speed); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one that says %q", err, want)
		}
	}
}
