package emulatetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// Loopback are the tests for the loopback device of package emulate, near or
// far.
var Loopback = map[string]Test{
	"LoopbackBackPressure":          loopbackBackPressure,
	"LoopbackCancelOfDelayed":       loopbackCancelOfDelayed,
	"LoopbackDelayEnds":             loopbackDelayEnds,
	"LoopbackEchoBulk":              loopbackEchoBulk,
	"LoopbackEchoInterrupt":         loopbackEchoInterrupt,
	"LoopbackEchoInFlight":          loopbackEchoInFlight,
	"LoopbackHaltByRequest":         loopbackHaltByRequest,
	"LoopbackOverflow":              loopbackOverflow,
	"LoopbackPartOfTransferCounts":  loopbackPartOfTransferCounts,
	"LoopbackScratch":               loopbackScratch,
	"LoopbackScratchOutOfRange":     loopbackScratchOutOfRange,
	"LoopbackShortPacketsEnd":       loopbackShortPacketsEnd,
	"LoopbackZeroPacketEndsMessage": loopbackZeroPacketEndsMessage,
}

var echoSizes = []int{0, 1, 63, 64, 512, 65536, 1_000_000}

// randomBytes are the same for the same length.
func randomBytes(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func outURB(a usb.Address, kind usb.TransferType, data []byte) usb.URB {
	return usb.URB{Endpoint: a, Type: kind, Buffer: data}
}

func inURBOf(a usb.Address, kind usb.TransferType, size int) usb.URB {
	return usb.URB{Endpoint: a, Type: kind, Flags: usb.FlagDirIn, Buffer: make([]byte, size)}
}

// echo sends data and expects it back, both at the same time, because more may
// be sent than the device holds.
func echo(t *testing.T, d usb.Device, out usb.Address, kind usb.TransferType, data []byte) {
	t.Helper()
	in := submit(t, d, inURBOf(out|usb.DirIn, kind, len(data)))
	sent := submit(t, d, outURB(out, kind, data))
	checkMoved(t, sent, len(data))
	checkMoved(t, in, len(data))
	if !bytes.Equal(in.urb.Buffer, data) {
		t.Errorf("%d bytes came back changed", len(data))
	}
}

func checkMoved(t *testing.T, f *flight, want int) {
	t.Helper()
	if got := f.wait(t); got != usb.StatusOK || f.urb.Actual != want {
		t.Errorf("%v: status %v, %d of %d bytes", f.urb.Endpoint, got, f.urb.Actual, want)
	}
}

func loopbackEchoBulk(t *testing.T, d usb.Device) {
	configure(t, d)
	for _, n := range echoSizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			echo(t, d, emulate.LoopbackBulkOut, usb.Bulk, randomBytes(n))
		})
	}
}

func loopbackEchoInterrupt(t *testing.T, d usb.Device) {
	configure(t, d)
	for _, n := range echoSizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			echo(t, d, emulate.LoopbackInterruptOut, usb.Interrupt, randomBytes(n))
		})
	}
}

// loopbackEchoInFlight has many transfers on the way in both directions.
func loopbackEchoInFlight(t *testing.T, d usb.Device) {
	configure(t, d)
	const n, size = 64, 4096
	data := randomBytes(n * size)
	var in, out []*flight
	for i := range n {
		in = append(in, submit(t, d, inURBOf(emulate.LoopbackBulkIn, usb.Bulk, size)))
		out = append(out, submit(t, d, outURB(emulate.LoopbackBulkOut, usb.Bulk, data[i*size:][:size])))
	}
	for i := range n {
		checkMoved(t, out[i], size)
		checkMoved(t, in[i], size)
		if !bytes.Equal(in[i].urb.Buffer, data[i*size:][:size]) {
			t.Fatalf("transfer %d came back changed or out of order", i)
		}
	}
}

// loopbackBackPressure sends more than the device holds before it reads.
func loopbackBackPressure(t *testing.T, d usb.Device) {
	configure(t, d)
	data := randomBytes(300_001)
	out := submit(t, d, outURB(emulate.LoopbackBulkOut, usb.Bulk, data))
	controlIn(t, d, getStatus)
	if out.isDone() {
		t.Errorf("%d bytes were taken with nobody to read them: status %v", len(data), out.urb.Status)
	}
	in := submit(t, d, inURBOf(emulate.LoopbackBulkIn, usb.Bulk, len(data)))
	checkMoved(t, out, len(data))
	checkMoved(t, in, len(data))
	if !bytes.Equal(in.urb.Buffer, data) {
		t.Error("data came back changed")
	}
}

func loopbackShortPacketsEnd(t *testing.T, d usb.Device) {
	configure(t, d)
	for _, n := range []int{1, 63, 0, 1500, 65537} {
		out := submit(t, d, outURB(emulate.LoopbackBulkOut, usb.Bulk, randomBytes(n)))
		in := submit(t, d, inURBOf(emulate.LoopbackBulkIn, usb.Bulk, 1<<17))
		checkMoved(t, out, n)
		checkMoved(t, in, n)
		if !bytes.Equal(in.urb.Buffer[:n], out.urb.Buffer) {
			t.Errorf("%d bytes came back changed", n)
		}
	}
}

func loopbackZeroPacketEndsMessage(t *testing.T, d usb.Device) {
	configure(t, d)
	u := outURB(emulate.LoopbackBulkOut, usb.Bulk, randomBytes(2048))
	u.Flags |= usb.FlagZeroPacket
	out := submit(t, d, u)
	in := submit(t, d, inURBOf(emulate.LoopbackBulkIn, usb.Bulk, 8192))
	checkMoved(t, out, 2048)
	checkMoved(t, in, 2048)
}

// loopbackPartOfTransferCounts cancels a transfer that waits for more.
func loopbackPartOfTransferCounts(t *testing.T, d usb.Device) {
	configure(t, d)
	in := submit(t, d, inURBOf(emulate.LoopbackBulkIn, usb.Bulk, 8192))
	checkMoved(t, submit(t, d, outURB(emulate.LoopbackBulkOut, usb.Bulk, randomBytes(2048))), 2048)
	if in.isDone() {
		t.Fatalf("IN of 8192 bytes ended after 2048 with status %v", in.urb.Status)
	}
	d.Cancel(&in.urb)
	if got := in.wait(t); got == usb.StatusOK {
		t.Error("a cancelled transfer succeeded in part")
	}
	if in.urb.Actual > 2048 {
		t.Errorf("claims %d bytes", in.urb.Actual)
	}
}

func loopbackOverflow(t *testing.T, d usb.Device) {
	configure(t, d)
	checkMoved(t, submit(t, d, outURB(emulate.LoopbackBulkOut, usb.Bulk, randomBytes(64))), 64)
	in := submit(t, d, inURBOf(emulate.LoopbackBulkIn, usb.Bulk, 63))
	if got := in.wait(t); got != usb.StatusOverflow {
		t.Errorf("packet of 64 bytes into 63: status %v, want %v", got, usb.StatusOverflow)
	}
	echo(t, d, emulate.LoopbackBulkOut, usb.Bulk, randomBytes(100))
}

func scratch(direction uint8, offset, length int) usb.Setup {
	return usb.Setup{
		RequestType: direction | usb.KindVendor, Request: emulate.LoopbackScratch,
		Value: uint16(offset), Length: uint16(length),
	}
}

func loopbackScratch(t *testing.T, d usb.Device) {
	for _, n := range []int{0, 1, 8, 64, 255, emulate.LoopbackScratchSize} {
		data := randomBytes(n)
		controlOut(t, d, scratch(0, 0, n), data)
		if got := controlIn(t, d, scratch(usb.DirIn, 0, n)); !bytes.Equal(got, data) {
			t.Errorf("%d bytes of scratch memory came back changed", n)
		}
	}
	controlOut(t, d, scratch(0, 100, 4), []byte("abcd"))
	if got := controlIn(t, d, scratch(usb.DirIn, 101, 2)); string(got) != "bc" {
		t.Errorf("scratch memory at 101 = %q, want %q", got, "bc")
	}
}

func loopbackScratchOutOfRange(t *testing.T, d usb.Device) {
	controlStall(t, d, scratch(usb.DirIn, emulate.LoopbackScratchSize-3, 4))
	controlStall(t, d, scratch(0, emulate.LoopbackScratchSize, 1))
	controlStall(t, d, scratch(usb.DirIn, 0xffff, 0xffff))
}

func delay(t *testing.T, d usb.Device, a usb.Address, milliseconds uint16) {
	t.Helper()
	controlOut(t, d, usb.Setup{
		RequestType: usb.KindVendor, Request: emulate.LoopbackDelay,
		Value: milliseconds, Index: uint16(a),
	}, nil)
}

func loopbackDelayEnds(t *testing.T, d usb.Device) {
	configure(t, d)
	delay(t, d, emulate.LoopbackBulkOut, 20)
	delay(t, d, emulate.LoopbackInterruptIn, 20)
	delay(t, d, 0, 20)
	echo(t, d, emulate.LoopbackBulkOut, usb.Bulk, randomBytes(100))
	echo(t, d, emulate.LoopbackInterruptOut, usb.Interrupt, randomBytes(100))
	controlIn(t, d, scratch(usb.DirIn, 0, 8))
}

// loopbackCancelOfDelayed cancels transfers that the device would take longer
// over than anybody here waits.
func loopbackCancelOfDelayed(t *testing.T, d usb.Device) {
	configure(t, d)
	endpoints := []usb.URB{
		outURB(emulate.LoopbackBulkOut, usb.Bulk, randomBytes(100)),
		inURBOf(emulate.LoopbackInterruptIn, usb.Interrupt, 64),
		controlURB(scratch(usb.DirIn, 0, 8)),
	}
	for _, u := range endpoints {
		delay(t, d, u.Endpoint, 0xffff)
	}
	var flights []*flight
	for _, u := range endpoints {
		flights = append(flights, submit(t, d, u), submit(t, d, u))
	}
	for i, f := range flights {
		if f.isDone() {
			t.Errorf("transfer %d completed before its time: status %v", i, f.urb.Status)
		}
		d.Cancel(&f.urb)
	}
	for i, f := range flights {
		if got := f.wait(t); got != usb.StatusCancelled && got != usb.StatusUnlinked {
			t.Errorf("transfer %d: status %v, want %v", i, got, usb.StatusCancelled)
		}
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func loopbackHaltByRequest(t *testing.T, d usb.Device) {
	configure(t, d)
	for _, out := range []bool{true, false} {
		u := inURBOf(emulate.LoopbackBulkIn, usb.Bulk, 512)
		if out {
			u = outURB(emulate.LoopbackBulkOut, usb.Bulk, randomBytes(1<<20))
		}
		f := submit(t, d, u) // under way, not done, when the halt comes
		controlOut(t, d, usb.Setup{
			RequestType: usb.KindVendor, Request: emulate.LoopbackHalt, Index: uint16(u.Endpoint),
		}, nil)
		if got := f.wait(t); got != usb.StatusStall {
			t.Errorf("%v: status %v, want %v", u.Endpoint, got, usb.StatusStall)
		}
		if err := d.Reset(bounded(t)); err != nil {
			t.Fatalf("Reset: %v", err)
		}
		configure(t, d)
		echo(t, d, emulate.LoopbackBulkOut, usb.Bulk, randomBytes(100))
	}
}
