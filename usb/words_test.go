package usb

import (
	"errors"
	"fmt"
	"testing"
	"testing/quick"
)

func TestSetupBytes(t *testing.T) {
	s := Setup{RequestType: 0x80, Request: 6, Value: 0x0102, Index: 0x0304, Length: 0x0506}
	want := [8]byte{0x80, 6, 0x02, 0x01, 0x04, 0x03, 0x06, 0x05}
	if got := s.Bytes(); got != want {
		t.Errorf("got % x, want % x", got, want)
	}
	roundTrip := func(s Setup) bool { return ParseSetup(s.Bytes()) == s }
	if err := quick.Check(roundTrip, nil); err != nil {
		t.Error(err)
	}
}

func TestSetupPackets(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup Setup
		want  [8]byte
	}{
		{"GetDescriptor", GetDescriptor(DescString, 2, 0x0409, 255), [8]byte{0x80, 6, 2, 3, 9, 4, 255, 0}},
		{"SetConfiguration", SetConfiguration(3), [8]byte{0, 9, 3, 0, 0, 0, 0, 0}},
		{"SetInterface", SetInterface(2, 5), [8]byte{1, 11, 5, 0, 2, 0, 0, 0}},
		{"ClearHalt", ClearHalt(0x81), [8]byte{2, 1, 0, 0, 0x81, 0, 0, 0}},
		{"PortReset", PortReset(), [8]byte{0x23, 3, 4, 0, 0, 0, 0, 0}},
	} {
		if got := tt.setup.Bytes(); got != tt.want {
			t.Errorf("%s: got % x, want % x", tt.name, got, tt.want)
		}
	}
}

func TestStrings(t *testing.T) {
	for _, tt := range []struct {
		value fmt.Stringer
		want  string
	}{
		{Address(0x81), "endpoint 1 IN"},
		{Address(0x0f), "endpoint 15 OUT"},
		{SpeedUnknown, "unknown"},
		{SpeedHigh, "high"},
		{SpeedSuperPlus, "super-plus"},
		{Speed(7), "speed 7"},
		{Control, "control"},
		{Isochronous, "isochronous"},
		{Bulk, "bulk"},
		{Interrupt, "interrupt"},
		{TransferType(4), "transfer type 4"},
		{StatusOK, "ok"},
		{StatusStall, "endpoint stalled"},
		{Status(99), "status 99"},
		{SetConfiguration(1), "request 00/09 value 0001 index 0000 length 0"},
	} {
		if got := tt.value.String(); got != tt.want {
			t.Errorf("%T: got %q, want %q", tt.value, got, tt.want)
		}
	}
}

func TestSpeedBounds(t *testing.T) {
	for s := range Speed(10) {
		if got, want := s.Valid(), s >= 1 && s <= 6; got != want {
			t.Errorf("%v: Valid is %t", s, got)
		}
		if got, want := s.Super(), s >= 5; got != want {
			t.Errorf("%v: Super is %t", s, got)
		}
	}
}

func TestAddressIndexIsDistinct(t *testing.T) {
	seen := make(map[int]Address)
	for n := range Address(16) {
		for _, a := range []Address{n, n | DirIn} {
			if other, ok := seen[a.index()]; ok || a.index() > 31 {
				t.Errorf("%v has the index %d, as has %v", a, a.index(), other)
			}
			seen[a.index()] = a
		}
	}
}

func TestStatusErr(t *testing.T) {
	if err := StatusOK.Err(); err != nil {
		t.Errorf("StatusOK is the error %v", err)
	}
	err := fmt.Errorf("read: %w", StatusStall.Err())
	if !errors.Is(err, StatusStall.Err()) {
		t.Errorf("%v is no stall", err)
	}
	if errors.Is(err, StatusIO.Err()) {
		t.Errorf("%v is an I/O error", err)
	}
	if e, ok := errors.AsType[*StatusError](err); !ok || e.Status != StatusStall {
		t.Errorf("%v does not carry its status", err)
	}
}
