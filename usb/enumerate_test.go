package usb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
)

func TestReadDescriptors(t *testing.T) {
	raw := goodRaw()
	d, err := ReadDescriptors(t.Context(), standIn(raw))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Raw(); !reflect.DeepEqual(got, raw) {
		t.Errorf("got %+v, want %+v", got, raw)
	}
}

func TestReadDescriptorsOnlyAsks(t *testing.T) {
	s := standIn(goodRaw())
	if _, err := ReadDescriptors(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.requests {
		if !r.Is(DirIn, ReqGetDescriptor) {
			t.Errorf("the device was sent %v", r)
		}
	}
}

func TestReadDescriptorsWithoutBOS(t *testing.T) {
	raw := goodRaw()
	raw.BOS = nil
	raw.Device[2], raw.Device[3] = 0x00, 0x02
	s := standIn(raw)
	if _, err := ReadDescriptors(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.requests {
		if r.Value>>8 == DescBOS {
			t.Errorf("a USB 2.0 device was asked for %v", r)
		}
	}
}

// asks reports whether s asks for a descriptor of that kind.
func asks(s Setup, kind uint8) bool { return uint8(s.Value>>8) == kind }

func TestReadDescriptorsForgives(t *testing.T) {
	withoutBOS := func(r Raw) Raw { r.BOS = nil; return r }
	withoutStrings := func(r Raw) Raw { r.Strings = nil; return r }
	withoutSerial := func(r Raw) Raw { r.Strings = r.Strings[:3]; return r }
	same := func(r Raw) Raw { return r }
	for _, tt := range []struct {
		name string
		// quirk changes an answer.
		quirk func(s Setup, data []byte, status Status) ([]byte, Status)
		want  func(Raw) Raw
	}{
		{"BOS of 0 bytes", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if asks(s, DescBOS) {
				return nil, StatusOK
			}
			return b, st
		}, withoutBOS},
		{"BOS with a status nobody knows", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if asks(s, DescBOS) {
				return nil, 99
			}
			return b, st
		}, withoutBOS},
		{"BOS that is broken", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if asks(s, DescBOS) {
				return bytes.Repeat([]byte{9}, int(s.Length)), StatusOK
			}
			return b, st
		}, withoutBOS},
		{"BOS with a total below its head", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if asks(s, DescBOS) {
				return []byte{5, DescBOS, 4, 0, 0}, StatusOK
			}
			return b, st
		}, withoutBOS},
		{"strings padded to the length asked for", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if asks(s, DescString) {
				return append(bytes.Clone(b), make([]byte, int(s.Length)-len(b))...), st
			}
			return b, st
		}, same},
		{"strings with half a character too much", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if asks(s, DescString) {
				b = append(bytes.Clone(b), 'x')
				b[0]++
			}
			return b, st
		}, same},
		{"all strings stall", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if asks(s, DescString) {
				return nil, StatusStall
			}
			return b, st
		}, withoutStrings},
		{"no languages", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if s.Value == DescString<<8 {
				return []byte{2, DescString}, StatusOK
			}
			return b, st
		}, withoutStrings},
		{"one string stalls", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if s.Value == DescString<<8|3 {
				return nil, StatusStall
			}
			return b, st
		}, withoutSerial},
		{"one string longer than its answer", func(s Setup, b []byte, st Status) ([]byte, Status) {
			if s.Value == DescString<<8|3 {
				return []byte{200, DescString, 'x', 0}, StatusOK
			}
			return b, st
		}, withoutSerial},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := standIn(goodRaw())
			good := s.answer
			s.answer = func(s Setup) ([]byte, Status) {
				b, status := good(s)
				return tt.quirk(s, b, status)
			}
			d, err := ReadDescriptors(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := d.Raw(), tt.want(goodRaw()); !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestReadDescriptorsRefuses(t *testing.T) {
	isBad := func(err error) bool {
		_, ok := errors.AsType[*DescriptorError](err)
		return ok
	}
	is := func(s Status) func(error) bool {
		return func(err error) bool { return errors.Is(err, s.Err()) }
	}
	for _, tt := range []struct {
		name   string
		kind   uint8 // which answers are replaced
		data   []byte
		status Status
		check  func(error) bool
	}{
		{"device stalls", DescDevice, nil, StatusStall, is(StatusStall)},
		{"device too short", DescDevice, deviceBytes(1)[:8], StatusOK, isBad},
		{"255 configurations", DescDevice, deviceBytes(255), StatusOK, isBad},
		{"configuration stalls", DescConfiguration, nil, StatusStall, is(StatusStall)},
		{"configuration of 0 bytes", DescConfiguration, nil, StatusOK, isBad},
		{"configuration with a total below its head", DescConfiguration, set(configBytes(1), 2, 8, 0), StatusOK, isBad},
		{"configuration with a total that does not come", DescConfiguration, set(configBytes(1), 2, 0xff, 0xff), StatusOK, isBad},
		{"configurations that are one", DescConfiguration, configBytes(1), StatusOK, isBad},
		{"gone at the BOS", DescBOS, nil, StatusNoDevice, is(StatusNoDevice)},
		{"gone at the strings", DescString, nil, StatusNoDevice, is(StatusNoDevice)},
		{"shut down at the strings", DescString, nil, StatusShutdown, is(StatusShutdown)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := standIn(goodRaw())
			good := s.answer
			s.answer = func(s Setup) ([]byte, Status) {
				if asks(s, tt.kind) {
					return tt.data, tt.status
				}
				return good(s)
			}
			if d, err := ReadDescriptors(t.Context(), s); d != nil || !tt.check(err) {
				t.Errorf("got %v, %v", d, err)
			}
		})
	}
}

func TestReadDescriptorsRefusesTooMuch(t *testing.T) {
	huge := hugeRaw()
	s := &fakeDevice{answer: func(s Setup) ([]byte, Status) {
		if asks(s, DescDevice) {
			return huge.Device, StatusOK
		}
		return huge.Configurations[uint8(s.Value)], StatusOK
	}}
	_, err := ReadDescriptors(t.Context(), s)
	if _, ok := errors.AsType[*DescriptorError](err); !ok {
		t.Errorf("got %v", err)
	}
}

func TestReadDescriptorsEndsWithItsContext(t *testing.T) {
	for name, kind := range map[string]uint8{
		"at the device": DescDevice, "at a configuration": DescConfiguration,
		"at the BOS": DescBOS, "at a string": DescString,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			s := standIn(goodRaw())
			good := s.answer
			s.answer = func(s Setup) ([]byte, Status) {
				if asks(s, kind) {
					cancel()
					return nil, silent
				}
				return good(s)
			}
			d, err := ReadDescriptors(ctx, s)
			if d != nil || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, %v", d, err)
			}
		})
	}
}

// answersOf encodes the answers a device would give for
// FuzzReadDescriptors: a status, a length of two bytes, and the data.
func answersOf(raw Raw) []byte {
	var all []byte
	s := standIn(raw)
	good := s.answer
	s.answer = func(s Setup) ([]byte, Status) {
		b, status := good(s)
		b = b[:min(len(b), int(s.Length))]
		all = append(all, byte(-status))
		all = binary.LittleEndian.AppendUint16(all, uint16(len(b)))
		all = append(all, b...)
		return b, status
	}
	if _, err := ReadDescriptors(context.Background(), s); err != nil {
		panic(err)
	}
	return all
}

func FuzzReadDescriptors(f *testing.F) {
	f.Add(answersOf(goodRaw()))
	f.Add(answersOf(Raw{Device: deviceBytes(1), Configurations: [][]byte{configBytes(1)}}))
	f.Fuzz(func(t *testing.T, answers []byte) {
		s := &fakeDevice{answer: func(Setup) ([]byte, Status) {
			if len(answers) < 3 {
				return nil, StatusStall
			}
			status := -Status(answers[0])
			n := min(int(binary.LittleEndian.Uint16(answers[1:])), len(answers)-3)
			data := answers[3 : 3+n]
			answers = answers[3+n:]
			return data, status
		}}
		d, err := ReadDescriptors(t.Context(), s)
		// The device, head and whole of each configuration and of the BOS,
		// and the strings.
		if n, most := len(s.requests), 1+2*MaxConfigurations+2+256; n > most {
			t.Errorf("%d requests, expected at most %d", n, most)
		}
		if (d == nil) == (err == nil) {
			t.Fatalf("got %v, %v", d, err)
		}
		if d != nil {
			checkRules(t, d)
		}
	})
}
