//go:build guest

//vmexec:modules snd-usb-audio

package emulate_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"unsafe"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// What is needed of include/uapi/sound/asound.h, on 64-bit machines.
const (
	pcmHWParams = 0xc2604111
	pcmPrepare  = 0x4140
	pcmWrite    = 0x40184150
	pcmRead     = 0x80184151

	pcmRWInterleaved = 3 // access
	pcmS16LE         = 2 // format

	pcmChannels   = 10 - 8 // intervals, from SAMPLE_BITS on
	pcmRate       = 11 - 8
	pcmPeriodSize = 13 - 8
	pcmBufferSize = 17 - 8
)

type pcmInterval struct{ min, max, flags uint32 }

// pcmParams is struct snd_pcm_hw_params.
type pcmParams struct {
	flags     uint32
	masks     [3 + 5][8]uint32 // access, format, subformat; reserved
	intervals [12 + 9]pcmInterval
	requested uint32
	_         [5]uint32
	_         uint64
	_         [64]byte
}

type pcmTransfer struct {
	result int64
	buffer unsafe.Pointer
	frames uint64
}

// A pcm is a stream of a sound card.
type pcm struct{ f *os.File }

// openPCM opens a stream for 48 kHz stereo, with a buffer of two seconds: a guest
// on a busy machine may not run for one.
func openPCM(t *testing.T, node string) pcm {
	t.Helper()
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p := pcmParams{requested: ^uint32(0)}
	for i := range p.masks[:3] {
		for j := range p.masks[i] {
			p.masks[i][j] = ^uint32(0)
		}
	}
	p.masks[0] = [8]uint32{1 << pcmRWInterleaved}
	p.masks[1] = [8]uint32{1 << pcmS16LE}
	for i := range p.intervals[:12] {
		p.intervals[i].max = ^uint32(0)
	}
	for i, v := range map[int]uint32{
		pcmChannels: 2, pcmRate: emulate.AudioRate, pcmPeriodSize: emulate.AudioRate / 20, pcmBufferSize: 2 * emulate.AudioRate,
	} {
		p.intervals[i] = pcmInterval{v, v, 4} // a whole number
	}
	if err := ioctl(f, pcmHWParams, unsafe.Pointer(&p)); err != nil {
		t.Fatalf("%s does not do 48 kHz stereo: %v", node, err)
	}
	if err := ioctl(f, pcmPrepare, nil); err != nil {
		t.Fatalf("prepare %s: %v", node, err)
	}
	return pcm{f}
}

// move writes or reads whole frames.
func (p pcm) move(request uintptr, b []byte) error {
	x := pcmTransfer{buffer: unsafe.Pointer(unsafe.SliceData(b)), frames: uint64(len(b) / emulate.AudioFrame)}
	return ioctl(p.f, request, unsafe.Pointer(&x))
}

// checkRecorded wants the samples in the order they were played, and none twice. A
// guest that is late, as on a busy machine, loses packets like any host: a few.
func checkRecorded(t *testing.T, got []byte) {
	t.Helper()
	last, lost := uint32(0), 0
	for i := 0; i < len(got); i += emulate.AudioFrame {
		n := binary.LittleEndian.Uint32(got[i:])
		if n <= last || n > emulate.AudioRate {
			t.Fatalf("sample %d follows sample %d", n, last)
		}
		lost += int(n - last - 1)
		last = n
	}
	if lost += emulate.AudioRate - int(last); lost > emulate.AudioRate/10 {
		t.Errorf("%d of %d samples were lost", lost, emulate.AudioRate)
	}
}

// What is played through the kernel's driver is recorded through it.
func TestGuestAudio(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedFull, usb.SpeedHigh} {
		t.Run(speed.String(), func(t *testing.T) {
			g := attach(t, "audio", emulate.Options{Speed: speed})
			recorder := openPCM(t, g.waitNode(t, "*:*/sound/card*/pcmC*D0c", "/dev/snd"))
			player := openPCM(t, g.waitNode(t, "*:*/sound/card*/pcmC*D0p", "/dev/snd"))

			sound := make([]byte, emulate.AudioRate*emulate.AudioFrame)
			for i := range emulate.AudioRate {
				binary.LittleEndian.PutUint32(sound[i*emulate.AudioFrame:], uint32(i+1))
			}
			piece := make([]byte, emulate.AudioRate/100*emulate.AudioFrame)
			if err := recorder.move(pcmRead, piece); err != nil { // it records from here on
				t.Fatalf("record: %v", err)
			}
			played := make(chan error, 1)
			go func() {
				// The silence after it keeps the driver from dropping the end.
				played <- player.move(pcmWrite, append(bytes.Clone(sound), make([]byte, len(sound))...))
			}()
			var got []byte
			for pieces := 0; len(got) < len(sound) && pieces < 1000; pieces++ { // 10 s at most
				if err := recorder.move(pcmRead, piece); err != nil {
					t.Fatalf("record, after %d bytes of %d: %v", len(got), len(sound), err)
				}
				for i := 0; i < len(piece); i += emulate.AudioFrame {
					if frame := piece[i:][:emulate.AudioFrame]; binary.LittleEndian.Uint32(frame) != 0 {
						got = append(got, frame...)
					}
				}
			}
			if err := <-played; err != nil {
				t.Errorf("play: %v", err)
			}
			checkRecorded(t, got)
		})
	}
}
