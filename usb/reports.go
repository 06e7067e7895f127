package usb

import (
	"context"
	"encoding/binary"
	"errors"
)

// MaxReportDescriptor bounds a report descriptor, in bytes, as Linux does
// (HID_MAX_DESCRIPTOR_SIZE of include/linux/hid.h).
const MaxReportDescriptor = 4096

const (
	classHID    = 0x03
	descHID     = 0x21 // HID 1.11, section 7.1
	descReport  = 0x22
	toInterface = 0x01 // recipient of a request (USB 2.0, table 9-2)
)

// Report returns the report descriptor of an interface of the HID class in the
// first configuration, nil if there is none or it was not read.
func (d *Descriptors) Report(iface uint8) []byte {
	for _, r := range d.raw.Reports {
		if r.Interface == iface {
			return r.Data
		}
	}
	return nil
}

// ReadReports adds the report descriptors of the device's HID interfaces to d.
// They can only be asked for in a configuration, so it puts a device that has
// such interfaces into its first one. One that cannot be read is left out, as is
// that of an interface with alternate settings. Its errors and its time are
// those of [ReadDescriptors].
func ReadReports(ctx context.Context, s Submitter, d *Descriptors) (*Descriptors, error) {
	r := descriptorReader{ctx: ctx, s: s}
	raw := d.raw
	raw.Reports = nil
	if len(d.configs) == 0 {
		return d, nil
	}
	configured := false
	for _, i := range d.configs[0].Interfaces {
		length := d.reportLength(i.Number)
		if length == 0 {
			continue
		}
		if !configured {
			if _, err := ControlTransfer(ctx, s, SetConfiguration(d.configs[0].Value), nil); err != nil {
				return nil, err
			}
			configured = true
		}
		b, err := r.report(i.Number, length)
		if err != nil {
			return nil, err
		}
		if len(b) == int(length) {
			raw.Reports = append(raw.Reports, RawReport{i.Number, b})
		}
	}
	return NewDescriptors(raw)
}

// report returns nil for a descriptor the device does not have.
func (r *descriptorReader) report(iface uint8, length uint16) ([]byte, error) {
	b := make([]byte, length)
	n, err := ControlTransfer(r.ctx, r.s, Setup{
		RequestType: uint8(DirIn) | toInterface, Request: ReqGetDescriptor,
		Value: descReport << 8, Index: uint16(iface), Length: length,
	}, b)
	if err != nil {
		return nil, r.forgive(err)
	}
	return b[:n], nil
}

// reportLength returns what the HID descriptor of an interface in the first
// configuration says (HID 1.11, section 6.2.1), 0 if there is none to believe.
func (d *Descriptors) reportLength(iface uint8) uint16 {
	if len(d.configs) == 0 {
		return 0
	}
	for _, i := range d.configs[0].Interfaces {
		if i.Number != iface || len(i.Alternates) != 1 || i.Alternates[0].Class != classHID {
			continue
		}
		n, err := hidReportLength(i.Alternates[0].Extra)
		if err != nil || n > MaxReportDescriptor {
			return 0
		}
		return n
	}
	return 0
}

var errNoHID = errors.New("no HID descriptor, or more than one")

// hidReportLength finds the one HID descriptor among class descriptors. One that
// lists more than a report descriptor is not taken: Linux takes the length of the
// last in its list.
func hidReportLength(extra []byte) (length uint16, err error) {
	for len(extra) >= 2 {
		n := int(extra[0])
		if n < 2 || n > len(extra) {
			return 0, errNoHID
		}
		if extra[1] == descHID {
			if length != 0 || n != 9 || extra[5] != 1 || extra[6] != descReport {
				return 0, errNoHID
			}
			length = binary.LittleEndian.Uint16(extra[7:])
		}
		extra = extra[n:]
	}
	if length == 0 {
		return 0, errNoHID
	}
	return length, nil
}
