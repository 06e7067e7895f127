package policy

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// device describes a device of one configuration.
func device(t testing.TB, class [3]uint8, interfaces ...emulate.Interface) *usb.Descriptors {
	t.Helper()
	for n := range interfaces {
		interfaces[n].Number = uint8(n)
	}
	return build(t, emulate.Description{
		Class: class[0], SubClass: class[1], Protocol: class[2],
		Configurations: []emulate.Configuration{{Interfaces: interfaces}},
	})
}

func build(t testing.TB, d emulate.Description) *usb.Descriptors {
	t.Helper()
	d.Vendor, d.Product, d.SerialNumber = 0x1234, 0xabcd, "S-1"
	b, err := d.Build(usb.SpeedHigh)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func iface(class, subclass, protocol uint8) emulate.Interface {
	return emulate.Interface{Class: class, SubClass: subclass, Protocol: protocol}
}

func TestGuardedRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		device *usb.Descriptors
		want   Class // numClasses: taken
	}{
		{"smart card reader", device(t, [3]uint8{}, iface(0x0b, 0, 0)), numClasses},
		{"vendor's own", device(t, [3]uint8{0xff, 0, 0}, iface(0xff, 0, 0)), numClasses},
		{"modem", device(t, [3]uint8{2, 0, 0}, iface(2, 2, 1), iface(0x0a, 0, 0)), numClasses},
		{"camera", device(t, [3]uint8{0xef, 2, 1}, iface(0x0e, 1, 0)), numClasses},
		{"Ethernet", device(t, [3]uint8{}, iface(2, 6, 0), iface(0x0a, 0, 0)), Network},
		{"NCM", device(t, [3]uint8{}, iface(2, 0x0d, 0)), Network},
		{"MBIM", device(t, [3]uint8{}, iface(2, 0x0e, 0)), Network},
		{"RNDIS as a modem", device(t, [3]uint8{}, iface(2, 2, 0xff)), Network},
		{"RNDIS as wireless", device(t, [3]uint8{}, iface(0xe0, 1, 3)), Bluetooth},
		{"RNDIS as miscellaneous", device(t, [3]uint8{}, iface(0xef, 4, 1)), Network},
		{"hub by its interface", device(t, [3]uint8{}, iface(9, 0, 0)), Hub},
		{"hub by its device class", device(t, [3]uint8{9, 0, 1}, iface(0xff, 0, 0)), Hub},
		{"Bluetooth", device(t, [3]uint8{0xe0, 1, 1}, iface(0xff, 0, 0)), Bluetooth},
		{"disk", device(t, [3]uint8{}, iface(8, 6, 0x50)), Storage},
		{"UAS", device(t, [3]uint8{}, iface(8, 6, 0x62)), Storage},
		{"boot keyboard", device(t, [3]uint8{}, iface(3, 1, 1)), Keyboard},
		{"boot mouse, which may type", device(t, [3]uint8{}, iface(3, 1, 2)), Keyboard},
		{"disk beside a reader", device(t, [3]uint8{}, iface(0x0b, 0, 0), iface(8, 6, 0x50)), Storage},
		{"disk in the second configuration", build(t, emulate.Description{Configurations: []emulate.Configuration{
			{Interfaces: []emulate.Interface{iface(0xff, 0, 0)}}, {Interfaces: []emulate.Interface{iface(8, 6, 0x50)}},
		}}), Storage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Guarded()
			err := p.Judge(usb.SpeedHigh, tt.device, 0)
			if tt.want == numClasses {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if _, refused := errors.AsType[*Refusal](err); !refused || !strings.Contains(err.Error(), "--allow "+tt.want.String()) {
				t.Fatalf("error %v does not say --allow %v", err, tt.want)
			}
			open := Open()
			if err := open.Judge(usb.SpeedHigh, tt.device, 0); err != nil {
				t.Errorf("refused by an open policy: %v", err)
			}
		})
	}
}

// A disk in the second setting of an interface is a disk.
func TestEveryAlternateCounts(t *testing.T) {
	dev, err := emulate.Open("audio", emulate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	raw := dev.Descriptors().Raw()
	config := slices.Clone(raw.Configurations[0])
	for i := 0; i < len(config); i += int(config[i]) {
		if config[i+1] == usb.DescInterface && config[i+3] == 1 {
			config[i+5] = classStorage
			break
		}
	}
	raw.Configurations = [][]byte{config}
	d, err := usb.NewDescriptors(raw)
	if err != nil {
		t.Fatal(err)
	}
	p := Guarded()
	if err := p.Judge(usb.SpeedFull, d, 0); err == nil || !strings.Contains(err.Error(), "storage") {
		t.Errorf("error %v", err)
	}
}

func TestRules(t *testing.T) {
	disk, reader := device(t, [3]uint8{}, iface(8, 6, 0x50)), device(t, [3]uint8{}, iface(0x0b, 0, 0))
	keyboard := device(t, [3]uint8{}, iface(3, 1, 1))
	for _, tt := range []struct {
		name        string
		allow, deny []string
		device      *usb.Descriptors
		want        string // "": taken
	}{
		{"class", []string{"storage"}, nil, disk, ""},
		{"number", []string{"1234:abcd"}, nil, disk, ""},
		{"number and serial", []string{"1234:ABCD:S-1"}, nil, disk, ""},
		{"number of what can type", []string{"1234:abcd"}, nil, keyboard, "keyboard"},
		{"number and class of what can type", []string{"1234:abcd", "keyboard"}, nil, keyboard, ""},
		{"another serial", []string{"1234:abcd:S-2"}, nil, disk, "storage"},
		{"another number", []string{"1234:abce"}, nil, disk, "storage"},
		{"class denied", nil, []string{"smartcard"}, reader, "smartcard"},
		{"number denied", []string{"all"}, []string{"1234:abcd"}, reader, "denied by its number"},
		{"denied goes before allowed, by number", []string{"1234:abcd"}, []string{"1234:abcd:S-1"}, reader, "denied by its number"},
		{"all but one class", []string{"smartcard"}, []string{"all"}, reader, ""},
		{"all but one class, another", []string{"smartcard"}, []string{"all"}, disk, "storage"},
		{"all but one device", []string{"1234:abcd"}, []string{"all"}, disk, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Guarded().With(tt.allow, tt.deny)
			if err != nil {
				t.Fatal(err)
			}
			err = p.Judge(usb.SpeedHigh, tt.device, 0)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	d := device(t, [3]uint8{}, iface(0xff, 0, 0))
	p := Policy{Classes: All, MaxDevices: 2, MaxSpeed: usb.SpeedHigh}
	for _, tt := range []struct {
		speed  usb.Speed
		others int
		want   string
	}{
		{usb.SpeedHigh, 1, ""},
		{usb.SpeedHigh, 2, "--max-devices 3"},
		{usb.SpeedSuper, 0, "--max-speed super"},
	} {
		err := p.Judge(tt.speed, d, tt.others)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v beside %d: error %v, want %q", tt.speed, tt.others, err, tt.want)
		}
	}
}

func TestZeroPolicyTakesNothing(t *testing.T) {
	var p Policy
	if p.Judge(usb.SpeedHigh, device(t, [3]uint8{}, iface(0xff, 0, 0)), 0) == nil {
		t.Error("a device was taken")
	}
}

func TestBadRules(t *testing.T) {
	for _, rule := range []string{"", "disk", "Storage", "storage,network", "1234", "1234:", "1234:abcd:", "123:abcd", "12345:abcd", "1234:abcg", "+123:abcd", ":"} {
		if _, err := Open().With([]string{rule}, nil); err == nil {
			t.Errorf("%q is accepted", rule)
		}
	}
}

func TestJSON(t *testing.T) {
	p, err := Guarded().With([]string{"storage", "1234:abcd:S-1"}, []string{"audio", "0001:0002"})
	if err != nil {
		t.Fatal(err)
	}
	p.MaxDevices, p.MaxSpeed = 3, usb.SpeedHigh
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var back Policy
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, back); diff != "" {
		t.Errorf("%s\n%s", b, diff)
	}
	if err := json.Unmarshal([]byte(`{"classes":"storage,nonesuch"}`), &back); err == nil {
		t.Error("an unknown class is accepted")
	}
}

func FuzzRules(f *testing.F) {
	for _, s := range []string{"storage", "1234:abcd", "1234:abcd:S,1", "all"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rule string) {
		p, err := Guarded().With([]string{rule}, []string{rule})
		if err != nil {
			return
		}
		for _, id := range p.Allow {
			var back ID
			if err := back.UnmarshalText([]byte(id.String())); err != nil || back != id {
				t.Errorf("%v became %v, %v", id, back, err)
			}
		}
	})
}
