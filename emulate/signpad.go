package emulate

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/usbns/usbns/usb"
)

// The size of a [Signpad]: 100 by 50 mm in units of 0.01 mm, and the greatest
// pressure, which has no unit.
const (
	SignpadMaxX        = 10_000
	SignpadMaxY        = 5_000
	SignpadMaxPressure = 1023
)

// A Signpad is a pad to sign on with a pen: a digitizer of the HID class.
type Signpad struct {
	*Device
	hid hid
}

// A PenPoint is where the pen touches the pad, X from the left and Y from the
// top, and how hard.
type PenPoint struct {
	X, Y     int
	Pressure int
}

// signpadReport is the report descriptor: a pen with tip switch, in range,
// position and pressure (HID usage tables, chapter 16).
var signpadReport = []byte{
	0x05, 0x0d, 0x09, 0x02, 0xa1, 0x01, // a pen, from the digitizer page
	0x09, 0x20, 0xa1, 0x00, // the stylus
	0x09, 0x42, 0x09, 0x32, 0x15, 0x00, 0x25, 0x01,
	0x75, 0x01, 0x95, 0x02, 0x81, 0x02, // tip switch, in range: a bit each
	0x95, 0x06, 0x81, 0x03, // six bits of nothing
	0x05, 0x01, 0x55, 0x0d, 0x65, 0x11, // generic desktop, in units of 10^-3 cm
	0x75, 0x10, 0x95, 0x01, 0x35, 0x00,
	0x09, 0x30, 0x26, SignpadMaxX & 0xff, SignpadMaxX >> 8, 0x46, SignpadMaxX & 0xff, SignpadMaxX >> 8, 0x81, 0x02,
	0x09, 0x31, 0x26, SignpadMaxY & 0xff, SignpadMaxY >> 8, 0x46, SignpadMaxY & 0xff, SignpadMaxY >> 8, 0x81, 0x02,
	0x05, 0x0d, 0x55, 0x00, 0x65, 0x00, 0x45, 0x00, // without a unit
	0x09, 0x30, 0x26, SignpadMaxPressure & 0xff, SignpadMaxPressure >> 8, 0x81, 0x02,
	0xc0, 0xc0,
}

const (
	penTip     = 0x01
	penInRange = 0x02
)

func penReport(state byte, p PenPoint) []byte {
	b := append(make([]byte, 0, 7), state)
	b = binary.LittleEndian.AppendUint16(b, uint16(p.X))
	b = binary.LittleEndian.AppendUint16(b, uint16(p.Y))
	return binary.LittleEndian.AppendUint16(b, uint16(p.Pressure))
}

// NewSignpad makes a pad, at full speed unless the options say otherwise.
func NewSignpad(o Options) (*Signpad, error) {
	speed, err := o.speed(usb.SpeedFull, usb.SpeedLow)
	if err != nil {
		return nil, err
	}
	p := &Signpad{hid: hid{descriptor: signpadReport, input: len(penReport(0, PenPoint{}))}}
	if err := p.hid.open(speed, o.describe(productSignpad, "usbns signature pad")); err != nil {
		return nil, err
	}
	p.Device = p.hid.dev
	return p, nil
}

// Draw puts the pen down, moves it along the points, lifts it at the last one
// and takes it away, and returns when the host has seen all of that. One Draw
// waits for another. The error is of a point outside of the pad, and then nothing
// was drawn; [ErrNotConfigured] if no host uses the pad; [usb.ErrGone]; or the
// cause of the end of ctx. After an error the pen is away.
func (p *Signpad) Draw(ctx context.Context, points ...PenPoint) error {
	err := p.hid.send(ctx, func() ([][]byte, error) { return penReports(points) })
	if err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	return nil
}

func penReports(points []PenPoint) ([][]byte, error) {
	if len(points) == 0 {
		return nil, fmt.Errorf("a stroke without points")
	}
	hover := func(p PenPoint) []byte {
		p.Pressure = 0
		return penReport(penInRange, p)
	}
	reports := [][]byte{hover(points[0])}
	for i, p := range points {
		if p.X < 0 || p.X > SignpadMaxX || p.Y < 0 || p.Y > SignpadMaxY || p.Pressure < 1 || p.Pressure > SignpadMaxPressure {
			return nil, fmt.Errorf("point %d (%d,%d,%d): allowed are 0,0,1 to %d,%d,%d", i+1, p.X, p.Y, p.Pressure,
				SignpadMaxX, SignpadMaxY, SignpadMaxPressure)
		}
		reports = append(reports, penReport(penInRange|penTip, p))
	}
	last := points[len(points)-1]
	last.Pressure = 0
	return append(reports, hover(last), penReport(0, last)), nil
}

// Tell implements [Teller]: it draws the points of one stroke, which look like
// "100,200,512 110,210,600": X, Y and pressure.
func (p *Signpad) Tell(ctx context.Context, text string) error {
	var points []PenPoint
	for _, field := range strings.Fields(text) {
		var q PenPoint
		var rest string
		if n, _ := fmt.Sscanf(field, "%d,%d,%d%s", &q.X, &q.Y, &q.Pressure, &rest); n != 3 {
			return fmt.Errorf("draw: %q is no point; one looks like 100,200,512: X, Y and pressure", field)
		}
		points = append(points, q)
	}
	return p.Draw(ctx, points...)
}
