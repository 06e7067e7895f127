package emulate

import (
	"bytes"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usbns/usbns/usb"
)

func newTestAudio(t *testing.T, settings ...usb.Setup) *Audio {
	t.Helper()
	a, err := NewAudio(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	for _, s := range append([]usb.Setup{usb.SetConfiguration(1)}, settings...) {
		mustControl(t, a, s, nil)
	}
	return a
}

// isoURB has n packets of size bytes.
func isoURB(a usb.Address, n, size int) *usb.URB {
	u := &usb.URB{Endpoint: a, Type: usb.Isochronous, Buffer: make([]byte, n*size)}
	for i := range n {
		u.Packets = append(u.Packets, usb.IsoPacket{Offset: i * size, Length: size})
	}
	return u
}

// stream keeps four transfers in flight until one has completed so often.
func stream(t *testing.T, d usb.Device, a usb.Address, size, transfers int, each func(*usb.URB)) <-chan struct{} {
	t.Helper()
	done := make(chan struct{})
	started, completed := 0, 0
	submit := func(u *usb.URB) {
		if started == transfers {
			return
		}
		started++
		if !a.In() {
			each(u)
		}
		if err := d.Submit(u); err != nil {
			t.Error(err)
		}
	}
	for range 4 {
		u := isoURB(a, 8, size)
		u.Complete = func(u *usb.URB) {
			if u.Status != usb.StatusOK || u.Errors != 0 {
				t.Errorf("status %v, %d errors", u.Status, u.Errors)
			}
			if a.In() {
				each(u)
			}
			if completed++; completed == transfers {
				close(done)
			}
			submit(u)
		}
		submit(u)
	}
	return done
}

// Every sample that is played is recorded, in order, and a packet takes a
// millisecond.
func TestAudioRecordsWhatItPlays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAudio(t, usb.SetInterface(1, 1), usb.SetInterface(2, 1))
		const transfers = 125 // a second
		begin := time.Now()
		next := uint32(0)
		var played, recorded []byte
		out := stream(t, a, audioOut, audioPacket, transfers, func(u *usb.URB) {
			for i := 0; i < len(u.Buffer); i += AudioFrame {
				next++
				binary.LittleEndian.PutUint32(u.Buffer[i:], next)
			}
			played = append(played, u.Buffer...)
		})
		in := stream(t, a, audioIn, audioPacket+AudioFrame, transfers+4, func(u *usb.URB) {
			for _, p := range u.Packets {
				if p.Actual != audioPacket {
					t.Errorf("a packet of %d bytes, want %d", p.Actual, audioPacket)
				}
				recorded = append(recorded, u.Buffer[p.Offset:][:p.Actual]...)
			}
		})
		<-out
		if took := time.Since(begin); took != time.Second {
			t.Errorf("a second of sound took %v", took)
		}
		<-in
		if got := withoutSilence(recorded); !bytes.Equal(got, played) {
			t.Errorf("%d bytes recorded, %d played", len(got), len(played))
		}
	})
}

// withoutSilence drops frames that are 0.
func withoutSilence(b []byte) (sound []byte) {
	for ; len(b) >= AudioFrame; b = b[AudioFrame:] {
		if binary.LittleEndian.Uint32(b) != 0 {
			sound = append(sound, b[:AudioFrame]...)
		}
	}
	return sound
}

// What is played while nobody records is not kept, and not more than a second of
// what is.
func TestAudioKeepsNoMoreThanASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAudio(t, usb.SetInterface(1, 1))
		fill := func(u *usb.URB) {
			for i := range u.Buffer {
				u.Buffer[i] = 1
			}
		}
		<-stream(t, a, audioOut, audioPacket, 20, fill)
		if n := a.cable.Len(); n != 0 {
			t.Errorf("%d bytes kept for nobody", n)
		}
		mustControl(t, a, usb.SetInterface(2, 1), nil)
		<-stream(t, a, audioOut, audioPacket, 200, fill)
		if n := a.cable.Len(); n != audioCable {
			t.Errorf("%d bytes kept, want %d", n, audioCable)
		}
		mustControl(t, a, usb.SetInterface(2, 0), nil)
		if n := a.cable.Len(); n != 0 {
			t.Errorf("%d bytes kept for nobody", n)
		}
	})
}

// A stream that pauses does not make up for the pause.
func TestAudioStreamMayPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAudio(t, usb.SetInterface(2, 1))
		for _, pause := range []time.Duration{0, time.Hour, 0} {
			time.Sleep(pause)
			begin := time.Now()
			<-stream(t, a, audioIn, audioPacket, 5, func(*usb.URB) {})
			if took := time.Since(begin); took != 40*time.Millisecond {
				t.Errorf("after a pause of %v, 40 packets took %v", pause, took)
			}
		}
	})
}

// Transfers that are cancelled take no time.
func TestAudioCancelTakesNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAudio(t, usb.SetInterface(2, 1))
		begin := time.Now()
		for range 10 {
			u := isoURB(audioIn, 8, audioPacket)
			u.Complete = func(*usb.URB) {}
			if err := a.Submit(u); err != nil {
				t.Fatal(err)
			}
			a.Cancel(u)
		}
		<-stream(t, a, audioIn, audioPacket, 1, func(*usb.URB) {})
		if took := time.Since(begin); took != 8*time.Millisecond {
			t.Errorf("8 packets took %v", took)
		}
	})
}

func TestAudioStreamDoesNotAllocate(t *testing.T) {
	a := newTestAudio(t, usb.SetInterface(1, 1), usb.SetInterface(2, 1))
	done := make(chan struct{}, 2)
	complete := func(*usb.URB) { done <- struct{}{} }
	in, out := isoURB(audioIn, 1, audioPacket), isoURB(audioOut, 1, audioPacket)
	in.Complete, out.Complete = complete, complete
	move := func() {
		if a.Submit(in) != nil || a.Submit(out) != nil {
			panic("refused")
		}
		<-done
		<-done
	}
	if n := testing.AllocsPerRun(20, move); n != 0 {
		t.Errorf("%v allocations for a packet in each direction", n)
	}
}
