package usb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// ReadDescriptors asks a device for everything it says of itself: device,
// configurations, BOS where bcdUSB promises one, and the strings the others
// name, in the device's first language. It is what makes a stranger a
// [Device]: sizes are bounded before they are allocated, and a device that
// lies about them is refused with a [*DescriptorError]. It leaves the device's
// configuration as it was.
//
// Strings and BOS that cannot be read are left out, since many devices have
// faults there that no one misses. The caller's ctx is the only limit on time.
func ReadDescriptors(ctx context.Context, s Submitter) (*Descriptors, error) {
	r := descriptorReader{ctx: ctx, s: s}
	raw, err := r.read()
	if err != nil {
		return nil, err
	}
	d, err := NewDescriptors(raw)
	if err != nil {
		return nil, err
	}
	// Which strings there are is only known from the rest.
	strings, err := r.strings(d)
	if err != nil {
		return nil, err
	}
	if len(strings) == 0 {
		return d, nil
	}
	raw.Strings = strings
	return NewDescriptors(raw)
}

type descriptorReader struct {
	ctx context.Context
	s   Submitter
}

func (r *descriptorReader) read() (Raw, error) {
	var raw Raw
	var err error
	if raw.Device, err = r.get("device", DescDevice, 0, 0, deviceSize); err != nil {
		return Raw{}, err
	}
	dev, err := parseDevice(raw.Device)
	if err != nil {
		return Raw{}, err
	}
	size := 0
	for i := range dev.NumConfigurations {
		b, err := r.getTotal(fmt.Sprintf("configuration %d", i), DescConfiguration, i, configSize)
		if err != nil {
			return Raw{}, err
		}
		raw.Configurations = append(raw.Configurations, b)
		if size += len(b); size > MaxDescriptorBytes {
			return Raw{}, badDescriptor("device", "all descriptors together are more than %d bytes", MaxDescriptorBytes)
		}
	}
	if dev.USB >= 0x0201 {
		if raw.BOS, err = r.bos(); err != nil {
			return Raw{}, err
		}
	}
	return raw, nil
}

// bos returns nil for a BOS that is missing or broken.
func (r *descriptorReader) bos() ([]byte, error) {
	b, err := r.getTotal("BOS", DescBOS, 0, bosSize)
	if err != nil {
		return nil, r.forgive(err)
	}
	if checkBOS(b) != nil {
		return nil, nil
	}
	return b, nil
}

// strings reads what the device, its configurations and its interfaces name.
func (r *descriptorReader) strings(d *Descriptors) ([]RawString, error) {
	indexes := namedStrings(d)
	if len(indexes) == 0 {
		return nil, nil
	}
	languages, err := r.string(0, 0)
	if err != nil || len(languages.Data) < 4 {
		return nil, err
	}
	first := binary.LittleEndian.Uint16(languages.Data[2:])
	all := []RawString{languages}
	for _, i := range indexes {
		s, err := r.string(i, first)
		if err != nil {
			return nil, err
		}
		if s.Data != nil {
			all = append(all, s)
		}
	}
	return all, nil
}

func namedStrings(d *Descriptors) []uint8 {
	var seen [256]bool
	var list []uint8
	add := func(index uint8) {
		if index != 0 && !seen[index] {
			seen[index] = true
			list = append(list, index)
		}
	}
	add(d.device.ManufacturerString)
	add(d.device.ProductString)
	add(d.device.SerialString)
	for _, c := range d.configs {
		add(c.String)
		for _, i := range c.Interfaces {
			for _, a := range i.Alternates {
				add(a.String)
			}
		}
	}
	return list
}

// string returns one without Data where the device has none that is usable.
func (r *descriptorReader) string(index uint8, langID uint16) (RawString, error) {
	s := RawString{Index: index, LangID: langID}
	b, err := r.get("string", DescString, index, langID, 255)
	if err != nil {
		return s, r.forgive(err)
	}
	if len(b) < 2 || int(b[0]) > len(b) {
		return s, nil
	}
	s.Data = bytes.Clone(b[:b[0]&^1]) // most are much shorter than what was asked for
	if len(s.Data) >= 2 {
		s.Data[0] = byte(len(s.Data))
	}
	if checkString(s) != nil {
		s.Data = nil
	}
	return s, nil
}

// forgive lets a missing descriptor pass, but not the end of the device or of
// the caller's patience.
func (r *descriptorReader) forgive(err error) error {
	if errors.Is(err, StatusNoDevice.Err()) || errors.Is(err, StatusShutdown.Err()) {
		return err
	}
	if _, failed := errors.AsType[*StatusError](err); failed && r.ctx.Err() == nil {
		return nil
	}
	if _, bad := errors.AsType[*DescriptorError](err); bad {
		return nil
	}
	return err
}

// getTotal reads a descriptor whose third and fourth byte tell the length of
// all that belongs to it.
func (r *descriptorReader) getTotal(which string, kind, index uint8, head uint16) ([]byte, error) {
	b, err := r.get(which, kind, index, 0, head)
	if err != nil {
		return nil, err
	}
	if len(b) < int(head) {
		return nil, badDescriptor(which, "is %d bytes, too short", len(b))
	}
	total := binary.LittleEndian.Uint16(b[2:])
	if total < head {
		return nil, badDescriptor(which, "claims %d bytes in all", total)
	}
	return r.get(which, kind, index, 0, total)
}

// get returns what the device answers, at most length bytes.
func (r *descriptorReader) get(which string, kind, index uint8, langID, length uint16) ([]byte, error) {
	b := make([]byte, length)
	n, err := ControlTransfer(r.ctx, r.s, GetDescriptor(kind, index, langID, length), b)
	if err != nil {
		return nil, fmt.Errorf("read %s descriptor: %w", which, err)
	}
	return b[:n], nil
}
