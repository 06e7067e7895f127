//go:build guest

//vmexec:modules usbip-host xhci-pci
//vmexec:qemu -device qemu-xhci -device usb-kbd
//vmexec:qemu -blockdev driver=null-co,node-name=stick,size=67108864,read-zeroes=on -device usb-storage,drive=stick
//vmexec:qemu -audiodev none,id=quiet -device usb-audio,audiodev=quiet

package usbip_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// The tests here import devices that QEMU makes from the stock server, which is
// a user of the protocol that nobody wrote for this one.

// startUsbipd binds all devices of the guest to usbip-host, serves them, and
// returns their busids by product.
func startUsbipd(t *testing.T) map[string]string {
	t.Helper()
	busids := make(map[string]string)
	for _, file := range awaitProducts(t, 3) {
		product, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		busid := filepath.Base(filepath.Dir(file))
		busids[strings.TrimSpace(string(product))] = busid
		if out, err := exec.Command("usbip", "bind", "-b", busid).CombinedOutput(); err != nil {
			t.Fatalf("usbip bind: %v\n%s", err, out)
		}
		t.Cleanup(func() { exec.Command("usbip", "unbind", "-b", busid).Run() })
	}
	usbipd := exec.Command("usbipd", "-4")
	stderr, err := usbipd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := usbipd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { usbipd.Process.Kill(); usbipd.Wait() })
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if strings.Contains(lines.Text(), "listening on") {
			return busids
		}
	}
	t.Fatal("usbipd does not listen")
	return nil
}

// awaitProducts returns the product files of that many devices, once the kernel
// has found them.
func awaitProducts(t *testing.T, n int) []string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 16<<10); ; {
		products, err := filepath.Glob("/sys/bus/usb/devices/[0-9]*-*/product")
		if err != nil {
			t.Fatal(err)
		}
		if len(products) == n {
			return products
		}
		if _, _, err := syscall.Recvfrom(fd, buf, 0); err != nil && err != syscall.EINTR {
			t.Fatal(err)
		}
	}
}

// importStock imports and configures a device of that server.
func importStock(t *testing.T, busid string) *usbip.Importer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The server may take a moment to find that the last importer has left.
	for {
		conn, err := usbip.Dial(ctx, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		dev, err := usbip.Import(ctx, conn, busid, nil)
		if errors.Is(err, usbip.OpBusy) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dev.Close() })
		configureStock(t, dev)
		return dev
	}
}

func configureStock(t *testing.T, dev usb.Device) {
	t.Helper()
	value := dev.Descriptors().Configurations()[0].Value
	if _, err := usb.ControlTransfer(t.Context(), dev, usb.SetConfiguration(value), nil); err != nil {
		t.Fatal(err)
	}
}

func TestGuestStockServer(t *testing.T) {
	busids := startUsbipd(t)
	t.Run("list", func(t *testing.T) {
		conn, err := usbip.Dial(t.Context(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		devices, err := usbip.List(t.Context(), conn)
		if err != nil || len(devices) != 3 {
			t.Errorf("listed %+v, %v", devices, err)
		}
	})
	t.Run("unknown busid", func(t *testing.T) {
		conn, err := usbip.Dial(t.Context(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = usbip.RequestImport(t.Context(), conn, "7-7")
		if _, ok := errors.AsType[usbip.OpStatus](err); !ok {
			t.Errorf("error %v", err)
		}
	})
	t.Run("keyboard", func(t *testing.T) { testKeyboard(t, busids["QEMU USB Keyboard"]) })
	t.Run("storage", func(t *testing.T) { testStorage(t, busids["QEMU USB HARDDRIVE"]) })
	t.Run("audio", func(t *testing.T) { testAudio(t, busids["QEMU USB Audio"]) })
}

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
	var in, out usb.Address
	for _, ep := range dev.Descriptors().Configurations()[0].Interfaces[0].Alternates[0].Endpoints {
		if ep.Address.In() {
			in = ep.Address
		} else {
			out = ep.Address
		}
	}
	transfer := func(a usb.Address, b []byte) int {
		t.Helper()
		u := usb.URB{Type: usb.Bulk, Endpoint: a, Buffer: b}
		if err := usb.Do(t.Context(), dev, &u); err != nil {
			t.Fatalf("%v: %v", a, err)
		}
		return u.Actual
	}
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
