package usb

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestNewDescriptors(t *testing.T) {
	d, err := NewDescriptors(goodRaw())
	if err != nil {
		t.Fatal(err)
	}
	want := DeviceDescriptor{
		USB: 0x0210, Class: 0xef, SubClass: 2, Protocol: 1, MaxPacket0: 64,
		Vendor: 0x046d, Product: 0xc077, Version: 0x7211,
		ManufacturerString: 1, ProductString: 2, SerialString: 3, NumConfigurations: 2,
	}
	if d.Device() != want {
		t.Errorf("device: got %+v", d.Device())
	}
	if got := []string{d.Manufacturer(), d.Product(), d.Serial(), d.String(0), d.String(9)}; !slices.Equal(got, []string{"Maker", "Gerät 🙂", "0001", "", ""}) {
		t.Errorf("strings: got %q", got)
	}
	if d.Configuration(5) == nil || d.Configuration(2) != nil || len(d.Configurations()) != 2 {
		t.Errorf("configurations: got %+v", d.Configurations())
	}
	c := d.Configuration(1)
	if len(c.Interfaces) != 2 || len(c.Interfaces[1].Alternates) != 2 || c.MaxPower != 50 || c.Attributes != 0x80 {
		t.Fatalf("configuration: got %+v", c)
	}
	a := c.Interfaces[0].Alternates[0]
	if a.Class != 3 || a.SubClass != 1 || a.Protocol != 2 || !bytes.Equal(a.Extra, []byte{3, 0x21, 0xaa}) {
		t.Errorf("setting: got %+v", a)
	}
	endpoints := []Endpoint{
		{Address: 0x81, Type: Bulk, Attributes: 2, MaxPacket: 512, Interval: 4, Burst: 15, Companion: 3, BytesPerInterval: 0x1234},
		{Address: 0x02, Type: Interrupt, Attributes: 3, MaxPacket: 512, Interval: 4},
	}
	if !slices.Equal(a.Endpoints, endpoints) {
		t.Errorf("endpoints: got %+v, want %+v", a.Endpoints, endpoints)
	}
}

// withConfig is a device with one configuration and nothing else.
func withConfig(b []byte) Raw {
	return Raw{Device: deviceBytes(1), Configurations: [][]byte{b}}
}

func set(b []byte, at int, values ...byte) []byte {
	copy(b[at:], values)
	return b
}

func manySettings(n int) []byte {
	var parts [][]byte
	for i := range n {
		parts = append(parts, interfaceBytes(0, uint8(i)))
	}
	return configBytes(1, parts...)
}

func manyInterfaces(n int) []byte {
	var parts [][]byte
	for i := range n {
		parts = append(parts, interfaceBytes(uint8(i), 0))
	}
	return configBytes(1, parts...)
}

func hugeRaw() Raw {
	r := Raw{Device: deviceBytes(3)}
	for i := range 3 {
		r.Configurations = append(r.Configurations, configBytes(uint8(i+1), bytes.Repeat([]byte{2, 0xff}, 30_000)))
	}
	return r
}

func TestNewDescriptorsTakesTheMost(t *testing.T) {
	for name, b := range map[string][]byte{
		"settings":   manySettings(MaxAlternates),
		"interfaces": manyInterfaces(MaxInterfaces),
	} {
		if _, err := NewDescriptors(withConfig(b)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewDescriptorsRefuses(t *testing.T) {
	iface, ep := interfaceBytes(0, 0), endpointBytes(0x81, Bulk)
	withBOS := func(b ...byte) Raw {
		return Raw{Device: deviceBytes(1), Configurations: [][]byte{configBytes(1)}, BOS: b}
	}
	withString := func(b ...byte) Raw {
		return Raw{Device: deviceBytes(1), Configurations: [][]byte{configBytes(1)}, Strings: []RawString{{Index: 1, Data: b}}}
	}
	for _, tt := range []struct {
		name, which, reason string
		raw                 Raw
	}{
		{"nothing at all", "device", "is 0 bytes", Raw{}},
		{"device too short", "device", "is 17 bytes", Raw{Device: deviceBytes(1)[:17]}},
		{"device of another length than it says", "device", "not 18", Raw{Device: set(deviceBytes(1), 0, 19)}},
		{"device of another type", "device", "type 0x02", Raw{Device: set(deviceBytes(1), 1, 2)}},
		{"no configurations", "device", "claims 0", Raw{Device: deviceBytes(0)}},
		{"too many configurations", "device", "claims 9", Raw{Device: deviceBytes(9)}},
		{"configurations missing", "device", "claims 2", Raw{Device: deviceBytes(2), Configurations: [][]byte{configBytes(1)}}},
		{"all together too large", "device", "all descriptors together", hugeRaw()},

		{"configuration empty", "configuration 0", "too short", withConfig(nil)},
		{"configuration bLength too short", "configuration 0", "too short", withConfig(set(configBytes(1), 0, 8))},
		{"configuration bLength over its end", "configuration 0", "a head of 10 bytes", withConfig(set(configBytes(1), 0, 10))},
		{"configuration of another type", "configuration 0", "type 0x01", withConfig(set(configBytes(1), 1, 1))},
		{"wTotalLength too large", "configuration 0", "claims 65535", withConfig(set(configBytes(1), 2, 0xff, 0xff))},
		{"wTotalLength too small", "configuration 0", "claims 9", withConfig(set(configBytes(1, iface), 2, 9, 0))},
		{"255 interfaces claimed", "configuration 0", "claims 255 interfaces", withConfig(set(configBytes(1), 4, 255))},
		{"too many interfaces", "configuration 0", "more than 32 interfaces", withConfig(manyInterfaces(MaxInterfaces + 1))},
		{"too many alternates", "configuration 0", "more than 128 settings", withConfig(manySettings(MaxAlternates + 1))},
		{"configuration value 0", "configuration 0", "value 0", withConfig(configBytes(0))},
		{"configuration value twice", "configuration 1", "value 1 stands twice", Raw{Device: deviceBytes(2), Configurations: [][]byte{configBytes(1), configBytes(1)}}},

		{"bLength 0", "configuration 0", "a part of 0 bytes", withConfig(configBytes(1, []byte{0, 0x21}))},
		{"bLength 1", "configuration 0", "a part of 1 bytes", withConfig(configBytes(1, []byte{1, 0x21}))},
		{"bLength over the end", "configuration 0", "a part of 3 bytes", withConfig(configBytes(1, []byte{3, 0x21}))},
		{"one byte left", "configuration 0", "a part of 2 bytes", withConfig(configBytes(1, iface, []byte{2}))},

		{"interface too short", "configuration 0", "an interface of 8", withConfig(configBytes(1, set(interfaceBytes(0, 0), 0, 8)[:8]))},
		{"setting twice", "configuration 0", "interface 0 setting 0 stands twice", withConfig(configBytes(1, iface, iface))},
		{"endpoint too short", "configuration 0", "an endpoint of 6", withConfig(configBytes(1, iface, set(endpointBytes(0x81, Bulk), 0, 6)[:6]))},
		{"endpoint before any interface", "configuration 0", "before any interface", withConfig(configBytes(1, ep))},
		{"endpoint 0", "configuration 0", "number 0", withConfig(configBytes(1, iface, endpointBytes(0x80, Bulk)))},
		{"companion too short", "configuration 0", "an endpoint companion of 5", withConfig(configBytes(1, iface, ep, set(companionBytes(), 0, 5)[:5]))},
		{"companion without endpoint", "configuration 0", "before any endpoint", withConfig(configBytes(1, iface, companionBytes()))},
		{"companion of an earlier setting", "configuration 0", "before any endpoint", withConfig(configBytes(1, iface, ep, interfaceBytes(0, 1), companionBytes()))},

		{"BOS too short", "BOS", "malformed", withBOS(5, DescBOS, 4, 0)},
		{"BOS bLength over its end", "BOS", "malformed", withBOS(6, DescBOS, 5, 0, 0)},
		{"BOS of another type", "BOS", "malformed", withBOS(5, DescDevice, 5, 0, 0)},
		{"BOS wTotalLength too large", "BOS", "claims 6", withBOS(5, DescBOS, 6, 0, 0)},
		{"BOS part over the end", "BOS", "a part of 3", withBOS(5, DescBOS, 7, 0, 1, 3, DescDeviceCapability)},

		{"string empty", "string 1", "malformed", withString()},
		{"string of odd length", "string 1", "malformed", withString(3, DescString, 'a')},
		{"string bLength over its end", "string 1", "malformed", withString(4, DescString)},
		{"string of another type", "string 1", "malformed", withString(4, DescDevice, 'a', 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := NewDescriptors(tt.raw)
			bad, ok := errors.AsType[*DescriptorError](err)
			if !ok || d != nil {
				t.Fatalf("got %v, %v", d, err)
			}
			if bad.Which != tt.which || !strings.Contains(bad.Reason, tt.reason) {
				t.Errorf("got %q, want it to name %q and %q", err, tt.which, tt.reason)
			}
		})
	}
}

// TestFirstOfTwins has a second endpoint of one address, of another type and
// with a companion, which Linux leaves out as well.
func TestFirstOfTwins(t *testing.T) {
	twin := set(endpointBytes(0x81, Interrupt), 4, 8, 0)
	d, err := NewDescriptors(withConfig(configBytes(
		1, interfaceBytes(0, 0), endpointBytes(0x81, Bulk), twin, companionBytes(), endpointBytes(0x02, Bulk), companionBytes(),
	)))
	if err != nil {
		t.Fatal(err)
	}
	want := []Endpoint{
		{Address: 0x81, Type: Bulk, Attributes: 2, MaxPacket: 512, Interval: 4},
		{Address: 0x02, Type: Bulk, Attributes: 2, MaxPacket: 512, Interval: 4, Burst: 15, Companion: 3, BytesPerInterval: 0x1234},
	}
	if got := d.Configurations()[0].Interfaces[0].Alternates[0].Endpoints; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestEncodeString(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", ""},
		{"one plane", "Gerät", "Gerät"},
		{"surrogate pairs", "🙂🙂", "🙂🙂"},
		{"as long as fits", strings.Repeat("x", 126), strings.Repeat("x", 126)},
		{"cut", strings.Repeat("x", 127), strings.Repeat("x", 126)},
		{"not cut within a character", strings.Repeat("x", 125) + "🙂", strings.Repeat("x", 125)},
	} {
		b := EncodeString(tt.in)
		if err := checkString(RawString{Data: b}); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := decodeString(b); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestAnswer(t *testing.T) {
	raw := goodRaw()
	d, err := NewDescriptors(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		setup Setup
		want  []byte // nil for a stall
	}{
		{"device", GetDescriptor(DescDevice, 0, 0, 64), raw.Device},
		{"device, cut to the length asked for", GetDescriptor(DescDevice, 0, 0, 8), raw.Device[:8]},
		{"length 0", GetDescriptor(DescDevice, 0, 0, 0), []byte{}},
		{"configuration by index", GetDescriptor(DescConfiguration, 1, 0, 1024), raw.Configurations[1]},
		{"configuration that is not there", GetDescriptor(DescConfiguration, 2, 0, 1024), nil},
		{"BOS", GetDescriptor(DescBOS, 0, 0, 255), raw.BOS},
		{"languages, whatever the language", GetDescriptor(DescString, 0, 0x0409, 255), raw.Strings[0].Data},
		{"string", GetDescriptor(DescString, 2, 0x0409, 255), raw.Strings[2].Data},
		{"string in another language", GetDescriptor(DescString, 2, 0x0407, 255), nil},
		{"string that is not there", GetDescriptor(DescString, 4, 0x0409, 255), nil},
		{"device qualifier", GetDescriptor(DescDeviceQualifier, 0, 0, 10), nil},
		{"class descriptor", Setup{DirIn | ToInterface, ReqGetDescriptor, 0x2200, 0, 64}, nil},
		{"another request", SetConfiguration(1), nil},
	} {
		got, ok := d.Answer(tt.setup)
		if ok != (tt.want != nil) || !bytes.Equal(got, tt.want) {
			t.Errorf("%s: got % x, %t, want % x", tt.name, got, ok, tt.want)
		}
	}
}

func FuzzNewDescriptors(f *testing.F) {
	good := goodRaw()
	f.Add(good.Device, good.Configurations[0], good.Configurations[1], good.BOS, good.Strings[1].Data)
	f.Add(deviceBytes(1), set(configBytes(1), 0, 10), []byte{}, []byte{}, []byte{2, 3})
	f.Fuzz(func(t *testing.T, device, config0, config1, bos, str []byte) {
		raw := Raw{Device: device, BOS: bos, Strings: []RawString{{Index: 1, Data: str}}}
		raw.Configurations = [][]byte{config0, config1}
		if len(config1) == 0 {
			raw.Configurations = raw.Configurations[:1]
		}
		d, err := NewDescriptors(raw)
		if err != nil {
			if _, ok := errors.AsType[*DescriptorError](err); !ok || d != nil {
				t.Fatalf("got %v, %v", d, err)
			}
			return
		}
		checkRules(t, d)
	})
}

// checkRules checks what Descriptors promises of itself.
func checkRules(t *testing.T, d *Descriptors) {
	t.Helper()
	if err := checkSize(d.Raw()); err != nil {
		t.Error(err)
	}
	if n := len(d.Configurations()); n == 0 || n > MaxConfigurations {
		t.Errorf("%d configurations", n)
	}
	e := NewEndpoints(d)
	for i := range d.Configurations() {
		c := &d.Configurations()[i]
		if d.Configuration(c.Value) != c {
			t.Errorf("configuration value %d stands twice", c.Value)
		}
		if len(c.Interfaces) > MaxInterfaces {
			t.Errorf("%d interfaces", len(c.Interfaces))
		}
		e.Observe(SetConfiguration(c.Value), StatusOK)
		for _, iface := range c.Interfaces {
			if n := len(iface.Alternates); n == 0 || n > MaxAlternates {
				t.Errorf("%d settings", n)
			}
			for _, a := range iface.Alternates {
				e.Observe(SetInterface(iface.Number, a.Setting), StatusOK)
				checkEndpoints(t, e, a)
			}
		}
	}
}

func checkEndpoints(t *testing.T, e *Endpoints, a Alternate) {
	t.Helper()
	seen := make(map[Address]bool)
	for _, ep := range a.Endpoints {
		if ep.Address.Number() == 0 || seen[ep.Address] {
			t.Errorf("%v is 0 or stands twice", ep.Address)
		}
		seen[ep.Address] = true
		if _, ok := e.Lookup(ep.Address); !ok {
			t.Errorf("%v is in the setting but not found", ep.Address)
		}
	}
}
