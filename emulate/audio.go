package emulate

import (
	"bytes"
	"time"

	"github.com/usbns/usbns/usb"
)

const (
	audioOut = usb.Address(0x01)
	audioIn  = usb.Address(0x81)
)

// What an [Audio] plays and records: frames of a left and a right sample, 16 bits
// each, little-endian.
const (
	AudioRate  = 48_000 // frames a second
	AudioFrame = 4      // bytes

	audioPacket = AudioRate / 1000 * AudioFrame // a millisecond
	// audioCable is how much is on the way from playback to capture at most: a
	// second.
	audioCable = 1000 * audioPacket
)

// Codes of the audio class (Audio 1.0, appendix A).
const (
	classAudio     = 0x01
	audioControl   = 0x01 // subclasses
	audioStreaming = 0x02

	audioAdaptive    = 0x08 // synchronisation of an endpoint: to the host's rate
	audioSynchronous = 0x0c // to the bus
)

// An Audio is a sound card (audio class 1.0) for 48 kHz stereo, with a cable from
// its output to its input: what is played is recorded, in silence before, after
// and wherever there was nothing to play. It keeps the time of its streams with
// the machine's clock, a packet a millisecond.
type Audio struct {
	*Device
	playback, capture isoClock
	cable             bytes.Buffer
}

// NewAudio makes a sound card, at full speed unless the options say otherwise.
func NewAudio(o Options) (*Audio, error) {
	speed, err := o.speed(usb.SpeedFull, usb.SpeedFull)
	if err != nil {
		return nil, err
	}
	d := o.describe(productAudio, "usbns sound card")
	d.Configurations = []Configuration{{MilliAmps: 100, Interfaces: audioInterfaces(speed)}}
	desc, err := d.Build(speed)
	if err != nil {
		return nil, err
	}
	a := &Audio{}
	a.Device, err = New(Config{
		Speed:       speed,
		Descriptors: desc,
		Endpoints:   map[usb.Address]Handler{audioOut: a.out, audioIn: a.in},
		Changed:     a.changed,
	})
	return a, err
}

// audioInterfaces are one for control, with the terminals, and one for each
// stream. A stream's setting 0 has no endpoint, setting 1 has one.
func audioInterfaces(speed usb.Speed) []Interface {
	const usbStream, speaker, microphone = 0x0101, 0x0301, 0x0201
	terminals := bytes.Join([][]byte{
		inputTerminal(1, usbStream), outputTerminal(2, speaker, 1),
		inputTerminal(3, microphone), outputTerminal(4, usbStream, 3),
	}, nil)
	const head = 10
	header := []byte{head, 0x24, 0x01, 0x00, 0x01, byte(head + len(terminals)), 0, 2, 1, 2}
	stream := func(number, terminal uint8, a usb.Address, sync uint8) []Interface {
		return []Interface{
			{Number: number, Class: classAudio, SubClass: audioStreaming},
			{
				Number: number, Alternate: 1, Class: classAudio, SubClass: audioStreaming,
				Extra: []byte{
					7, 0x24, 0x01, terminal, 1, 0x01, 0x00, // general: a packet late, PCM
					11, 0x24, 0x02, 1, 2, 2, 16, 1, AudioRate & 0xff, AudioRate >> 8 & 0xff, AudioRate >> 16, // format type I
				},
				Endpoints: []Endpoint{{
					Address: a, Type: usb.Isochronous, Sync: sync, Audio: true,
					MaxPacket: audioPacket + AudioFrame, Interval: isoInterval(speed),
					Extra: []byte{7, 0x25, 0x01, 0, 0, 0, 0}, // general: nothing can be set
				}},
			},
		}
	}
	interfaces := []Interface{{Class: classAudio, SubClass: audioControl, Extra: append(header, terminals...)}}
	interfaces = append(interfaces, stream(1, 1, audioOut, audioAdaptive)...)
	return append(interfaces, stream(2, 4, audioIn, audioSynchronous)...)
}

// inputTerminal is where sound enters (Audio 1.0, section 4.3.2.1): left and
// right front.
func inputTerminal(id uint8, kind uint16) []byte {
	return []byte{12, 0x24, 0x02, id, byte(kind), byte(kind >> 8), 0, 2, 0x03, 0x00, 0, 0}
}

// outputTerminal is where sound leaves (Audio 1.0, section 4.3.2.2).
func outputTerminal(id uint8, kind uint16, source uint8) []byte {
	return []byte{9, 0x24, 0x03, id, byte(kind), byte(kind >> 8), 0, source, 0}
}

// isoInterval is a packet a millisecond: 2^(n-1) frames, or microframes from high
// speed on.
func isoInterval(speed usb.Speed) uint8 {
	if speed >= usb.SpeedHigh {
		return 4
	}
	return 1
}

// out takes what is played. Nobody hears what is not recorded.
func (a *Audio) out(u *usb.URB) (done bool) {
	if !a.playback.reached(u, a.Device) {
		return false
	}
	recording, _ := a.Alternate(2)
	for i := range u.Packets {
		p := &u.Packets[i]
		p.Actual = p.Length
		u.Actual += p.Length
		if recording != 0 {
			a.cable.Write(u.Buffer[p.Offset:][:p.Length])
		}
	}
	a.cable.Next(max(0, a.cable.Len()-audioCable))
	return true
}

// in gives what is recorded: what comes over the cable, or silence.
func (a *Audio) in(u *usb.URB) (done bool) {
	if !a.capture.reached(u, a.Device) {
		return false
	}
	for i := range u.Packets {
		p := &u.Packets[i]
		b := u.Buffer[p.Offset:][:min(p.Length, audioPacket)]
		n, _ := a.cable.Read(b) // 0 when it is empty
		clear(b[n:])
		p.Actual = len(b)
		u.Actual += len(b)
	}
	return true
}

func (a *Audio) changed() { a.cable.Reset() }

// An isoClock holds the transfers of an isochronous endpoint until the time of
// their last packet has come.
type isoClock struct {
	timer *time.Timer
	next  time.Time // when the first packet of the next transfer goes
	due   time.Time // when the last packet of the one that waits has gone
}

// isoGap is how late a transfer may come and still belong to the stream, which
// then catches up.
const isoGap = 100 * time.Millisecond

func (c *isoClock) reached(u *usb.URB, d *Device) bool {
	now := time.Now()
	if u.Holder != c {
		u.Holder = c
		c.wait(u, d, now)
	}
	if now.Before(c.due) {
		return false
	}
	c.next = c.due
	return true
}

// wait works out when a transfer will be due. One that was cancelled before that
// has taken no time.
func (c *isoClock) wait(u *usb.URB, d *Device, now time.Time) {
	if now.Sub(c.next) > isoGap {
		c.next = now
	}
	c.due = c.next.Add(time.Duration(len(u.Packets)) * time.Millisecond)
	if c.timer != nil {
		c.timer.Reset(c.due.Sub(now))
		return
	}
	a := u.Endpoint
	c.timer = time.AfterFunc(c.due.Sub(now), func() { d.Wake(a) })
}
