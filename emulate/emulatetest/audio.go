package emulatetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// Audio are the tests for the sound card of package emulate, near or far:
// isochronous transfers.
var Audio = map[string]Test{
	"AudioCancel":                 audioCancel,
	"AudioInvalidPacketsRefused":  audioInvalidPacketsRefused,
	"AudioPacketsLieAtTheirPlace": audioPacketsLieAtTheirPlace,
	"AudioRecordsWhatItPlays":     audioRecordsWhatItPlays,
}

const (
	audioPlayback = usb.Address(0x01)
	audioCapture  = usb.Address(0x81)
	audioPacket   = emulate.AudioRate / 1000 * emulate.AudioFrame // a millisecond
	audioPackets  = 8                                             // in a transfer
)

// startAudio chooses the settings with the endpoints.
func startAudio(t *testing.T, d usb.Device) {
	t.Helper()
	configure(t, d)
	controlOut(t, d, usb.SetInterface(1, 1), nil)
	controlOut(t, d, usb.SetInterface(2, 1), nil)
}

// isoURB has packets of length bytes, step bytes from each other.
func isoURB(a usb.Address, length, step int) usb.URB {
	u := usb.URB{Endpoint: a, Type: usb.Isochronous, Flags: usb.FlagIsoASAP, Buffer: make([]byte, audioPackets*step), Interval: 1}
	if a.In() {
		u.Flags |= usb.FlagDirIn
	}
	for i := range audioPackets {
		u.Packets = append(u.Packets, usb.IsoPacket{Offset: i * step, Length: length})
	}
	return u
}

func audioPacketsLieAtTheirPlace(t *testing.T, d usb.Device) {
	startAudio(t, d)
	const step = audioPacket + 64
	u := isoURB(audioCapture, audioPacket+emulate.AudioFrame, step)
	for i := range u.Buffer {
		u.Buffer[i] = 0xee
	}
	f := submit(t, d, u)
	if got := f.wait(t); got != usb.StatusOK || f.urb.Actual != audioPackets*audioPacket || f.urb.Errors != 0 {
		t.Fatalf("status %v, %d bytes, %d errors", got, f.urb.Actual, f.urb.Errors)
	}
	silence := make([]byte, audioPacket)
	for i, p := range f.urb.Packets {
		if p.Offset != i*step || p.Actual != audioPacket || p.Status != usb.StatusOK {
			t.Errorf("packet %d: %+v", i, p)
		}
		if !bytes.Equal(f.urb.Buffer[p.Offset:][:audioPacket], silence) {
			t.Errorf("packet %d is not where it should be", i)
		}
	}
}

// audioRecordsWhatItPlays has both streams run, and finds every sample again, in
// order.
func audioRecordsWhatItPlays(t *testing.T, d usb.Device) {
	startAudio(t, d)
	const transfers = 25 // 200 ms
	var played []byte
	for i := range transfers * audioPackets * audioPacket / emulate.AudioFrame {
		played = binary.LittleEndian.AppendUint32(played, uint32(i+1))
	}
	var in, out []*flight
	for range 4 {
		in = append(in, submit(t, d, isoURB(audioCapture, audioPacket, audioPacket)))
	}
	for i := range transfers {
		u := isoURB(audioPlayback, audioPacket, audioPacket)
		copy(u.Buffer, played[i*len(u.Buffer):])
		out = append(out, submit(t, d, u))
	}
	var recorded []byte
	for range 1000 { // 8 s, if nothing comes
		f := in[0]
		if got := f.wait(t); got != usb.StatusOK || f.urb.Actual != len(f.urb.Buffer) {
			t.Fatalf("record: status %v, %d bytes", got, f.urb.Actual)
		}
		for b := f.urb.Buffer; len(b) > 0; b = b[emulate.AudioFrame:] {
			if binary.LittleEndian.Uint32(b) != 0 {
				recorded = append(recorded, b[:emulate.AudioFrame]...)
			}
		}
		if len(recorded) >= len(played) {
			break
		}
		in = append(in[1:], submit(t, d, isoURB(audioCapture, audioPacket, audioPacket)))
	}
	if !bytes.Equal(recorded, played) {
		t.Errorf("%d bytes were recorded, which are not the %d that were played", len(recorded), len(played))
	}
	for i, f := range out {
		if got := f.wait(t); got != usb.StatusOK || f.urb.Actual != len(f.urb.Buffer) {
			t.Errorf("play, transfer %d: status %v, %d bytes", i, got, f.urb.Actual)
		}
	}
}

func audioCancel(t *testing.T, d usb.Device) {
	startAudio(t, d)
	var flights []*flight
	for range 100 {
		flights = append(flights, submit(t, d, isoURB(audioCapture, audioPacket, audioPacket)))
	}
	for _, f := range flights {
		d.Cancel(&f.urb)
	}
	for i, f := range flights {
		if got := f.wait(t); got != usb.StatusOK && got != usb.StatusCancelled && got != usb.StatusUnlinked {
			t.Errorf("transfer %d: status %v", i, got)
		}
	}
	if got := submit(t, d, isoURB(audioCapture, audioPacket, audioPacket)).wait(t); got != usb.StatusOK {
		t.Errorf("afterwards: status %v", got)
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func audioInvalidPacketsRefused(t *testing.T, d usb.Device) {
	startAudio(t, d)
	for name, packets := range map[string][]usb.IsoPacket{
		"none":            nil,
		"negative offset": {{Offset: -1, Length: 1}},
		"negative length": {{Offset: 0, Length: -1}},
		"past the end":    {{Offset: 1, Length: audioPackets * audioPacket}},
	} {
		u := isoURB(audioCapture, audioPacket, audioPacket)
		u.Packets = packets
		f := newFlight(u)
		if err := d.Submit(&f.urb); !errors.Is(err, usb.ErrInvalid) {
			t.Errorf("%s: %v, want %v", name, err, usb.ErrInvalid)
		}
		defer func() {
			if n := f.completions.Load(); n != 0 {
				t.Errorf("%s: completed %d times", name, n)
			}
		}()
	}
	closeAndWait(t, d)
}
