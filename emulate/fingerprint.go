package emulate

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"math"

	"github.com/usbns/usbns/usb"
)

// The endpoints of a [Fingerprint].
const (
	FingerprintCommands = usb.Address(0x01) // bulk
	FingerprintAnswers  = usb.Address(0x81) // bulk
	FingerprintEvents   = usb.Address(0x82) // interrupt
)

// The size of a fingerprint in pixels of a byte each, 255 is white.
const (
	FingerprintWidth  = 192
	FingerprintHeight = 256
)

// What a [Fingerprint] understands. A command is 8 bytes, the first of which is
// its code and the others 0; anything else halts the endpoint. An answer has a
// head of 8 bytes: the code; a status; 16 bits with the number of the chunk, from
// 0; 32 bits with the length of what follows, all little-endian.
const (
	// FingerprintInfo is answered with two numbers of 16 bits: width and height.
	FingerprintInfo = 0x01
	// FingerprintCapture is answered with the image of the finger, row by row,
	// in chunks of at most FingerprintChunk bytes that are answers each.
	FingerprintCapture = 0x02

	// FingerprintAbort is a vendor request to the device: answers that were not
	// fetched are forgotten. Until they are fetched no command is taken.
	FingerprintAbort = 0x01

	FingerprintChunk = 4096
	FingerprintHead  = 8
)

// The status of an answer.
const (
	FingerprintOK       = 0
	FingerprintNoFinger = 1
	FingerprintUnknown  = 2 // no such command
)

// A Fingerprint is a fingerprint reader with a protocol of its own. On the
// events endpoint it says when a finger is put on, by a 1, and taken off, by a 0.
type Fingerprint struct {
	*Device
	task task // of the one whose finger it is

	// The rest is guarded by task.mu.
	finger    []byte // the image of the finger that is on, nil if none is
	told      bool   // what the host knows: a finger is on
	capturing bool   // the answers to come are of the finger
	answers   messages
}

// NewFingerprint makes a reader, at high speed unless the options say
// otherwise.
func NewFingerprint(o Options) (*Fingerprint, error) {
	speed, err := o.speed(usb.SpeedHigh, usb.SpeedFull)
	if err != nil {
		return nil, err
	}
	bulk := bulkPacket(speed)
	d := o.describe(productFingerprint, "usbns fingerprint reader")
	d.Configurations = []Configuration{{
		MilliAmps: 100,
		Interfaces: []Interface{{
			Class: classVendor,
			Endpoints: []Endpoint{
				{Address: FingerprintCommands, Type: usb.Bulk, MaxPacket: bulk},
				{Address: FingerprintAnswers, Type: usb.Bulk, MaxPacket: bulk},
				{Address: FingerprintEvents, Type: usb.Interrupt, MaxPacket: 8, Interval: interval(speed, 16)},
			},
		}},
	}}
	desc, err := d.Build(speed)
	if err != nil {
		return nil, err
	}
	f := &Fingerprint{task: newTask(), answers: messages{maxPacket: int(bulk)}}
	f.Device, err = New(Config{
		Speed:       speed,
		Descriptors: desc,
		Control:     f.control,
		Endpoints: map[usb.Address]Handler{
			FingerprintCommands: f.command,
			FingerprintAnswers:  f.answer,
			FingerprintEvents:   f.event,
		},
		Changed: f.reset,
	})
	f.task.dev = f.Device
	return f, err
}

// Touch puts a finger on the reader and takes it off when the host has fetched
// its image, or ctx ends. The image must be of the reader's size. One Touch waits
// for another. The error is of the image; [ErrNotConfigured] if no host uses the
// reader; [usb.ErrGone]; or the cause of the end of ctx.
func (f *Fingerprint) Touch(ctx context.Context, finger *image.Gray) error {
	if err := f.touch(ctx, finger); err != nil {
		return fmt.Errorf("touch the fingerprint reader: %w", err)
	}
	return nil
}

// Tell implements [Teller]: it touches the reader with a finger that is the same
// for the same text.
func (f *Fingerprint) Tell(ctx context.Context, text string) error {
	return f.Touch(ctx, drawFinger(text))
}

func (f *Fingerprint) touch(ctx context.Context, finger *image.Gray) error {
	if size := finger.Rect.Size(); size != image.Pt(FingerprintWidth, FingerprintHeight) {
		return fmt.Errorf("the image is %v pixels, the reader sees %dx%d", size, FingerprintWidth, FingerprintHeight)
	}
	defer f.Wake(FingerprintEvents) // it is off again
	return f.task.run(ctx, func() error {
		f.finger = pixels(finger)
		return nil
	}, FingerprintEvents, f.takeOff)
}

func pixels(i *image.Gray) []byte {
	b := make([]byte, 0, FingerprintWidth*FingerprintHeight)
	for y := range FingerprintHeight {
		b = append(b, i.Pix[y*i.Stride:][:FingerprintWidth]...)
	}
	return b
}

// takeOff takes the finger off. The chunks that are under way stay valid.
func (f *Fingerprint) takeOff() { f.finger, f.capturing = nil, false }

func (f *Fingerprint) reset() {
	f.task.mu.Lock()
	defer f.task.mu.Unlock()
	f.answers.clear()
	f.told = false
	f.takeOff()
	f.task.end(ErrNotConfigured)
}

func (f *Fingerprint) control(u *usb.URB) (done bool) {
	if !u.Setup.Is(usb.KindVendor|usb.ToDevice, FingerprintAbort) {
		return Stall(u)
	}
	f.task.mu.Lock()
	f.answers.clear()
	f.capturing = false
	f.task.mu.Unlock()
	f.Wake(FingerprintCommands)
	return Accept(u)
}

func (f *Fingerprint) command(u *usb.URB) (done bool) {
	f.task.mu.Lock()
	defer f.task.mu.Unlock()
	if !f.answers.empty() {
		return false
	}
	if len(u.Buffer) != FingerprintHead || [7]byte(u.Buffer[1:]) != [7]byte{} {
		return Stall(u)
	}
	switch code := u.Buffer[0]; {
	case code == FingerprintInfo:
		f.reply(code, FingerprintOK, 0, []byte{FingerprintWidth & 0xff, FingerprintWidth >> 8, FingerprintHeight & 0xff, FingerprintHeight >> 8})
	case code == FingerprintCapture && f.finger != nil:
		f.capture()
	case code == FingerprintCapture:
		f.reply(code, FingerprintNoFinger, 0, nil)
	default:
		f.reply(code, FingerprintUnknown, 0, nil)
	}
	f.Wake(FingerprintAnswers)
	return Accept(u)
}

func (f *Fingerprint) capture() {
	for i, rest := 0, f.finger; len(rest) > 0; i++ {
		n := min(len(rest), FingerprintChunk)
		f.reply(FingerprintCapture, FingerprintOK, i, rest[:n])
		rest = rest[n:]
	}
	f.capturing = true
}

func (f *Fingerprint) reply(code, status byte, chunk int, data []byte) {
	b := append(make([]byte, 0, FingerprintHead+len(data)), code, status)
	b = binary.LittleEndian.AppendUint16(b, uint16(chunk))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	f.answers.add(append(b, data...))
}

func (f *Fingerprint) answer(u *usb.URB) (done bool) {
	f.task.mu.Lock()
	defer f.task.mu.Unlock()
	done = f.answers.in(u)
	if done && f.answers.empty() {
		if f.capturing {
			f.takeOff()
			f.task.end(nil)
		}
		f.Wake(FingerprintCommands)
	}
	return done
}

func (f *Fingerprint) event(u *usb.URB) (done bool) {
	f.task.mu.Lock()
	defer f.task.mu.Unlock()
	on := f.finger != nil
	if f.told == on {
		return false
	}
	f.told = on
	if on {
		return Reply(u, []byte{1})
	}
	return Reply(u, []byte{0})
}

// drawFinger draws ridges around a point, in a shape that follows from text.
func drawFinger(text string) *image.Gray {
	h := fnv.New64a()
	h.Write([]byte(text))
	seed := h.Sum64()
	part := func() float64 { // 0 to 1
		seed = seed>>8 | seed<<56
		return float64(seed&0xff) / 255
	}
	x0, y0 := FingerprintWidth*(0.3+0.4*part()), FingerprintHeight*(0.3+0.4*part())
	ridge, squeeze, twist := 0.6+0.3*part(), 0.6+0.4*part(), 4*part()-2
	g := image.NewGray(image.Rect(0, 0, FingerprintWidth, FingerprintHeight))
	for y := range FingerprintHeight {
		for x := range FingerprintWidth {
			dx, dy := float64(x)-x0, (float64(y)-y0)*squeeze
			wave := math.Cos(math.Hypot(dx, dy)*ridge + twist*math.Atan2(dy, dx))
			g.SetGray(x, y, color.Gray{Y: uint8(128 + 127*wave)})
		}
	}
	return g
}
