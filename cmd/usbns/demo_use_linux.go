package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"math"
	"strings"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/emulate"
)

// scan holds a code before the scanner of alice.
func (d *demo) scan() error {
	const code = "4006381333931"
	d.say("the scanner reads the bar code %s, while bob waits for what his device has to say", code)
	d.listen()
	return d.arrives("alice received "+code, func(ctx context.Context) error {
		return d.shelf[0].Device.(*emulate.Scanner).Scan(ctx, code)
	}, func() (string, error) {
		got, err := readLine(func() ([]byte, error) { return d.read("alice", 0, 0x81, 8) })
		return "alice received " + got, err
	})
}

// draw draws a stroke on the pad of alice.
func (d *demo) draw() error {
	stroke := []emulate.PenPoint{{X: 1000, Y: 4000, Pressure: 300}, {X: 2500, Y: 1500, Pressure: 700}, {X: 4000, Y: 3500, Pressure: 500}}
	d.say("alice signs on the pad")
	return d.arrives(fmt.Sprint("alice received the points ", stroke), func(ctx context.Context) error {
		return d.shelf[1].Device.(*emulate.Signpad).Draw(ctx, stroke...)
	}, func() (string, error) {
		got, err := d.readStroke()
		return fmt.Sprint("alice received the points ", got), err
	})
}

// arrives lets something happen to a device of alice, and compares what she
// receives. Bob must receive nothing meanwhile.
func (d *demo) arrives(want string, happen func(context.Context) error, receive func() (string, error)) error {
	got, err := d.both(happen, receive)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s: want: %s", got, want)
	}
	d.print("32", "%s", got)
	select {
	case h := <-d.heard:
		return fmt.Errorf("bob received %v, %v", h.data, h.err)
	default:
		d.print("32", "bob received nothing")
		return nil
	}
}

// both does what happens to a device and receives it, at the same time.
func (d *demo) both(happen func(context.Context) error, receive func() (string, error)) (string, error) {
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	happened := make(chan error, 1)
	go func() { happened <- happen(ctx) }()
	got, err := receive()
	if err != nil {
		cancel()
	}
	return got, errors.Join(err, <-happened)
}

// heard is what came of waiting for the fingerprint reader.
type heard struct {
	data []byte
	err  error
}

// listen waits for what bob's reader has to say, which is nothing until he puts
// a finger on it.
func (d *demo) listen() {
	d.heard = make(chan heard, 1)
	go func() {
		b, err := d.read("bob", 0, uint8(emulate.FingerprintEvents), 8)
		d.heard <- heard{b, err}
	}()
}

// touch puts a finger on the reader of bob.
func (d *demo) touch() error {
	d.say("bob puts a finger on his reader and fetches the image")
	finger := rings()
	var got []byte
	_, err := d.both(func(ctx context.Context) error {
		return d.shelf[2].Device.(*emulate.Fingerprint).Touch(ctx, finger)
	}, func() (_ string, err error) {
		got, err = d.capture()
		return "", err
	})
	if err != nil {
		return err
	}
	if !bytes.Equal(got, finger.Pix) {
		return errors.New("bob received another image than that of his finger")
	}
	fmt.Fprint(d.out, sketch(got))
	d.print("32", "bob received %d bytes, every pixel of the finger", len(got))
	return nil
}

// read asks for one transfer of an interrupt or bulk endpoint.
func (d *demo) read(owner string, port int, endpoint uint8, length int) ([]byte, error) {
	done, err := d.daemon.Transfer(d.ctx, owner, port, control.Transfer{
		Endpoint: endpoint, Length: length, Timeout: demoTime.Milliseconds(),
	})
	return done.Data, err
}

// readStroke reads from the pen's coming to its going away.
func (d *demo) readStroke() (stroke []emulate.PenPoint, err error) {
	for {
		b, err := d.read("alice", 1, 0x81, 7)
		if err != nil {
			return nil, err
		}
		if len(b) != 7 {
			return nil, fmt.Errorf("the pad reports %x", b)
		}
		const tip, inRange = 1, 2
		if b[0]&tip != 0 {
			n := binary.LittleEndian
			stroke = append(stroke, emulate.PenPoint{X: int(n.Uint16(b[1:])), Y: int(n.Uint16(b[3:])), Pressure: int(n.Uint16(b[5:]))})
		}
		if b[0]&inRange == 0 {
			return stroke, nil
		}
	}
}

// capture waits for the finger and fetches its image.
func (d *demo) capture() ([]byte, error) {
	if h := <-d.heard; h.err != nil {
		return nil, h.err
	}
	command := make(control.Hex, emulate.FingerprintHead)
	command[0] = emulate.FingerprintCapture
	_, err := d.daemon.Transfer(d.ctx, "bob", 0, control.Transfer{Endpoint: uint8(emulate.FingerprintCommands), Data: command})
	if err != nil {
		return nil, err
	}
	var pixels []byte
	for len(pixels) < emulate.FingerprintWidth*emulate.FingerprintHeight {
		b, err := d.read("bob", 0, uint8(emulate.FingerprintAnswers), emulate.FingerprintHead+emulate.FingerprintChunk)
		if err != nil {
			return nil, err
		}
		if len(b) <= emulate.FingerprintHead || b[1] != emulate.FingerprintOK {
			return nil, fmt.Errorf("the reader answers %.8x", b)
		}
		pixels = append(pixels, b[emulate.FingerprintHead:]...)
	}
	return pixels, nil
}

// rings is a finger of few words.
func rings() *image.Gray {
	g := image.NewGray(image.Rect(0, 0, emulate.FingerprintWidth, emulate.FingerprintHeight))
	for y := range emulate.FingerprintHeight {
		for x := range emulate.FingerprintWidth {
			r := math.Hypot(float64(x-emulate.FingerprintWidth/2), float64(y-emulate.FingerprintHeight/3)*0.7)
			g.SetGray(x, y, color.Gray{Y: uint8(128 + 127*math.Cos(r/5))})
		}
	}
	return g
}

// sketch draws pixels with characters, of which each stands for 4 by 16.
func sketch(pixels []byte) string {
	var b strings.Builder
	for y := 8; y < emulate.FingerprintHeight; y += 16 {
		b.WriteString("    ")
		for x := 2; x < emulate.FingerprintWidth; x += 4 {
			b.WriteByte("#*+-. "[int(pixels[y*emulate.FingerprintWidth+x])*6/256])
		}
		b.WriteByte('\n')
	}
	return b.String()
}
