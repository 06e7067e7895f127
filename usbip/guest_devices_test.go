//go:build guest

package usbip_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/usbns/usbns/usb"
)

// testKeyboard has transfers that wait: they are cancelled, by their submitter
// and by a reset.
func testKeyboard(t *testing.T, busid string) {
	dev := importStock(t, busid)
	const keys = usb.Address(0x81)
	for range 20 {
		u := usb.URB{Type: usb.Interrupt, Endpoint: keys, Buffer: make([]byte, 8), Interval: 10}
		done := make(chan struct{})
		u.Complete = func(*usb.URB) { close(done) }
		if err := dev.Submit(&u); err != nil {
			t.Fatal(err)
		}
		dev.Cancel(&u)
		if <-done; u.Status != usb.StatusCancelled {
			t.Errorf("a cancelled transfer ended with %v", u.Status)
		}
	}
	u := usb.URB{Type: usb.Interrupt, Endpoint: keys, Buffer: make([]byte, 8), Interval: 10}
	done := make(chan struct{})
	u.Complete = func(*usb.URB) { close(done) }
	if err := dev.Submit(&u); err != nil {
		t.Fatal(err)
	}
	if err := dev.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-done
	configureStock(t, dev)
	report := usb.GetDescriptor(0x22, 0, 0, 63)
	report.RequestType |= usb.ToInterface
	n, err := usb.ControlTransfer(t.Context(), dev, report, make([]byte, 63))
	if err != nil || n != 63 {
		t.Errorf("report descriptor of %d bytes, %v", n, err)
	}
	unknown := usb.Setup{RequestType: usb.DirIn | usb.KindVendor, Request: 0x55, Length: 4}
	_, err = usb.ControlTransfer(t.Context(), dev, unknown, make([]byte, 4))
	if !errors.Is(err, usb.StatusStall.Err()) {
		t.Errorf("an unknown request ends with %v", err)
	}
}

// testStorage moves data both ways: commands of the bulk-only transport.
func testStorage(t *testing.T, busid string) {
	dev := importStock(t, busid)
	if dev.Speed() != usb.SpeedSuper || dev.Descriptors().Raw().BOS == nil {
		t.Errorf("%v speed, BOS % x", dev.Speed(), dev.Descriptors().Raw().BOS)
	}
	in, out, _ := endpoints(dev)
	transfer := func(a usb.Address, b []byte) int { t.Helper(); return bulk(t, dev, a, b) }
	command := func(cdb []byte, a usb.Address, data []byte) {
		t.Helper()
		cbw := make([]byte, 31)
		copy(cbw, "USBCtag0")
		binary.LittleEndian.PutUint32(cbw[8:], uint32(len(data)))
		cbw[12], cbw[14] = byte(a&usb.DirIn), byte(len(cdb))
		copy(cbw[15:], cdb)
		transfer(out, cbw)
		if n := transfer(a, data); n != len(data) {
			t.Errorf("%d bytes of %d", n, len(data))
		}
		csw := make([]byte, 13)
		if n := transfer(in, csw); n != 13 || string(csw[:8]) != "USBStag0" || csw[12] != 0 {
			t.Errorf("command % x ends with % x", cdb, csw)
		}
	}
	inquiry := make([]byte, 36)
	command([]byte{0x12, 0, 0, 0, 36, 0}, in, inquiry)
	if !bytes.Contains(inquiry, []byte("QEMU")) {
		t.Errorf("INQUIRY gives %q", inquiry)
	}
	// 128 blocks of 512 bytes from block 8 on.
	blocks := bytes.Repeat([]byte{0xff}, 64<<10)
	command([]byte{0x28, 0, 0, 0, 0, 8, 0, 0, 128, 0}, in, blocks)
	if !bytes.Equal(blocks, make([]byte, 64<<10)) {
		t.Error("blocks of something")
	}
	command([]byte{0x2a, 0, 0, 0, 0, 8, 0, 0, 128, 0}, out, blocks)
}

// testAudio streams: transfers of eight packets, four at a time.
func testAudio(t *testing.T, busid string) {
	dev := importStock(t, busid)
	var iface, setting uint8
	var ep usb.Endpoint
	for _, i := range dev.Descriptors().Configurations()[0].Interfaces {
		for _, a := range i.Alternates {
			for _, e := range a.Endpoints {
				if e.Type == usb.Isochronous && ep.Address == 0 {
					iface, setting, ep = i.Number, a.Setting, e
				}
			}
		}
	}
	if _, err := usb.ControlTransfer(t.Context(), dev, usb.SetInterface(iface, setting), nil); err != nil {
		t.Fatal(err)
	}
	const packets, size, transfers = 8, 192, 40
	left := transfers
	done := make(chan struct{})
	complete := func(u *usb.URB) {
		if u.Status != usb.StatusOK || u.Errors != 0 || u.Actual != packets*size {
			t.Errorf("transfer ended with %v, %d errors, %d bytes", u.Status, u.Errors, u.Actual)
		}
		if left--; left == 0 {
			close(done)
		} else if left >= 4 {
			if err := dev.Submit(u); err != nil {
				t.Error(err)
				close(done)
			}
		}
	}
	for range 4 {
		u := &usb.URB{
			Type: usb.Isochronous, Endpoint: ep.Address, Flags: usb.FlagIsoASAP, Interval: 1,
			Buffer: make([]byte, packets*size), Complete: complete,
		}
		for n := range packets {
			u.Packets = append(u.Packets, usb.IsoPacket{Offset: n * size, Length: size})
		}
		if err := dev.Submit(u); err != nil {
			t.Fatal(err)
		}
	}
	<-done
}

// endpoints returns the first bulk endpoints of a device, and its first interrupt
// endpoint.
func endpoints(dev usb.Device) (in, out, events usb.Address) {
	for _, i := range dev.Descriptors().Configurations()[0].Interfaces {
		for _, ep := range i.Alternates[0].Endpoints {
			switch {
			case ep.Type == usb.Interrupt && events == 0:
				events = ep.Address
			case ep.Type == usb.Bulk && ep.Address.In() && in == 0:
				in = ep.Address
			case ep.Type == usb.Bulk && !ep.Address.In() && out == 0:
				out = ep.Address
			}
		}
	}
	return in, out, events
}

func bulk(t *testing.T, dev usb.Device, a usb.Address, b []byte) int {
	t.Helper()
	u := usb.URB{Type: usb.Bulk, Endpoint: a, Buffer: b}
	if err := usb.Do(t.Context(), dev, &u); err != nil {
		t.Fatalf("%v: %v", a, err)
	}
	return u.Actual
}

// testSerial has vendor requests, and an OUT endpoint that takes all it gets.
// The protocol is FTDI's.
func testSerial(t *testing.T, busid string) {
	dev := importStock(t, busid)
	_, out, _ := endpoints(dev)
	modem := usb.Setup{RequestType: usb.DirIn | usb.KindVendor, Request: 5, Length: 2}
	status := make([]byte, 2)
	if n, err := usb.ControlTransfer(t.Context(), dev, modem, status); err != nil || n != 2 {
		t.Errorf("modem status % x of %d bytes, %v", status, n, err)
	}
	baud := usb.Setup{RequestType: usb.KindVendor, Request: 3, Value: 0x1a} // 115200
	if _, err := usb.ControlTransfer(t.Context(), dev, baud, nil); err != nil {
		t.Errorf("set the baud rate: %v", err)
	}
	for _, n := range []int{1, 63, 64, 65, 1000, 16 << 10} {
		if got := bulk(t, dev, out, make([]byte, n)); got != n {
			t.Errorf("%d bytes of %d sent", got, n)
		}
	}
}

// testCardReader asks an empty slot for its status: a message each way.
func testCardReader(t *testing.T, busid string) {
	dev := importStock(t, busid)
	in, out, events := endpoints(dev)
	if in == 0 || out == 0 || events == 0 {
		t.Fatalf("endpoints %v, %v, %v", in, out, events)
	}
	for seq := range byte(3) {
		bulk(t, dev, out, []byte{0x65, 0, 0, 0, 0, 0, seq, 0, 0, 0})
		answer := make([]byte, 64)
		n := bulk(t, dev, in, answer)
		if n != 10 || answer[0] != 0x81 || answer[6] != seq || answer[7]&3 != 2 { // no card
			t.Errorf("slot status % x", answer[:n])
		}
	}
}
