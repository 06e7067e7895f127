package usb

import (
	"slices"
	"testing"
)

// present lists the endpoints e has besides endpoint 0.
func present(e *Endpoints) []Address {
	var list []Address
	for n := range Address(16) {
		for _, a := range []Address{n, n | DirIn} {
			if ep, ok := e.Lookup(a); ok && n != 0 {
				list = append(list, ep.Address)
			}
		}
	}
	return list
}

func TestEndpoints(t *testing.T) {
	type request struct {
		setup   Setup
		outcome Status
	}
	ok := func(s Setup) request { return request{s, StatusOK} }
	for _, tt := range []struct {
		name     string
		requests []request
		config   uint8
		want     []Address
	}{
		{"not configured", nil, 0, nil},
		{"configured", []request{ok(SetConfiguration(1))}, 1, []Address{0x81, 0x02}},
		{"alternate setting", []request{ok(SetConfiguration(1)), ok(SetInterface(1, 1))}, 1, []Address{0x81, 0x02, 0x83}},
		{"alternate setting and back", []request{ok(SetConfiguration(1)), ok(SetInterface(1, 1)), ok(SetInterface(1, 0))}, 1, []Address{0x81, 0x02}},
		{"configured anew forgets settings", []request{ok(SetConfiguration(1)), ok(SetInterface(1, 1)), ok(SetConfiguration(1))}, 1, []Address{0x81, 0x02}},
		{"another configuration", []request{ok(SetConfiguration(1)), ok(SetConfiguration(5))}, 5, []Address{0x81}},
		{"unconfigured", []request{ok(SetConfiguration(1)), ok(SetConfiguration(0))}, 0, nil},
		{"unknown configuration", []request{ok(SetConfiguration(1)), ok(SetConfiguration(2))}, 1, []Address{0x81, 0x02}},
		{"unknown interface", []request{ok(SetConfiguration(1)), ok(SetInterface(7, 0))}, 1, []Address{0x81, 0x02}},
		{"unknown setting", []request{ok(SetConfiguration(1)), ok(SetInterface(1, 2))}, 1, []Address{0x81, 0x02}},
		{"setting before configuration", []request{ok(SetInterface(1, 1)), ok(SetConfiguration(1))}, 1, []Address{0x81, 0x02}},
		{"configuration that failed", []request{{SetConfiguration(1), StatusStall}}, 0, nil},
		{"setting that failed", []request{ok(SetConfiguration(1)), {SetInterface(1, 1), StatusStall}}, 1, []Address{0x81, 0x02}},
		{"vendor request of the same number", []request{ok(Setup{KindVendor, ReqSetConfiguration, 1, 0, 0})}, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEndpoints(t, goodRaw())
			for _, r := range tt.requests {
				e.Observe(r.setup, r.outcome)
			}
			if got := e.Configuration(); got != tt.config {
				t.Errorf("configuration %d, want %d", got, tt.config)
			}
			if got := present(e); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func newEndpoints(t *testing.T, raw Raw) *Endpoints {
	t.Helper()
	d, err := NewDescriptors(raw)
	if err != nil {
		t.Fatal(err)
	}
	return NewEndpoints(d)
}

func TestEndpointZeroAlwaysExists(t *testing.T) {
	e := newEndpoints(t, goodRaw())
	for _, a := range []Address{0, DirIn} {
		if ep, ok := e.Lookup(a); !ok || ep.Type != Control || ep.Address != a {
			t.Errorf("%v: got %+v, %t", a, ep, ok)
		}
	}
}

func TestEndpointTypeFollowsTheConfiguration(t *testing.T) {
	e := newEndpoints(t, goodRaw())
	for value, want := range map[uint8]TransferType{1: Bulk, 5: Interrupt} {
		e.Observe(SetConfiguration(value), StatusOK)
		if ep, _ := e.Lookup(0x81); ep.Type != want {
			t.Errorf("configuration %d: got %v, want %v", value, ep.Type, want)
		}
	}
}

func TestFirstOfTwoEndpointsAtOneAddressCounts(t *testing.T) {
	e := newEndpoints(t, withConfig(configBytes(
		1,
		interfaceBytes(0, 0), endpointBytes(0x81, Bulk),
		interfaceBytes(1, 0), endpointBytes(0x81, Interrupt),
	)))
	e.Observe(SetConfiguration(1), StatusOK)
	if ep, _ := e.Lookup(0x81); ep.Type != Bulk {
		t.Errorf("got %v", ep.Type)
	}
}

func TestInterfaceWithoutSettingZeroStartsWithItsFirst(t *testing.T) {
	e := newEndpoints(t, withConfig(configBytes(
		1,
		interfaceBytes(0, 2), endpointBytes(0x81, Bulk),
		interfaceBytes(0, 1), endpointBytes(0x82, Bulk),
	)))
	e.Observe(SetConfiguration(1), StatusOK)
	if got := present(e); !slices.Equal(got, []Address{0x81}) {
		t.Errorf("got %v", got)
	}
	if setting, ok := e.Alternate(0); setting != 2 || !ok {
		t.Errorf("got setting %d, %t", setting, ok)
	}
}

func TestAlternate(t *testing.T) {
	e := newEndpoints(t, goodRaw())
	expect := func(when string, iface, want uint8, there bool) {
		t.Helper()
		if got, ok := e.Alternate(iface); got != want || ok != there {
			t.Errorf("%s: got %d, %t", when, got, ok)
		}
	}
	expect("not configured", 1, 0, false)
	e.Observe(SetConfiguration(1), StatusOK)
	expect("default", 1, 0, true)
	expect("unknown interface", 2, 0, false)
	e.Observe(SetInterface(1, 1), StatusOK)
	expect("chosen", 1, 1, true)
	e.Reset()
	expect("reset", 1, 0, false)
	if got := present(e); got != nil {
		t.Errorf("after a reset there are %v", got)
	}
}
