//go:build guest

//vmexec:modules usbip-host xhci-pci usbhid hid-generic
//vmexec:qemu -device qemu-xhci -device usb-kbd

package vhci_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

func findKeyboard(t *testing.T) (busid string) {
	t.Helper()
	if err := t.Context().Err(); err != nil {
		t.Fatal(err)
	}
	drivers, err := filepath.Glob("/sys/bus/usb/devices/*/*:1.0/driver")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range drivers {
		device := filepath.Dir(filepath.Dir(path))
		if text, _ := os.ReadFile(filepath.Join(device, "product")); string(text) == "QEMU USB Keyboard\n" {
			return filepath.Base(device)
		}
	}
	return ""
}

// serveKeyboard exports QEMU's keyboard with the stock tools and returns its
// busid.
func serveKeyboard(t *testing.T) (busid string) {
	t.Helper()
	for busid == "" { // the kernel may not have found it yet
		busid = findKeyboard(t)
	}
	run(t, "usbip", "bind", "-b", busid)
	t.Cleanup(func() { run(t, "usbip", "unbind", "-b", busid) })

	daemon := exec.Command("usbipd", "-4")
	stderr, err := daemon.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	})
	for lines := bufio.NewScanner(stderr); ; {
		if !lines.Scan() {
			t.Fatalf("usbipd ended: %v", lines.Err())
		}
		if strings.Contains(lines.Text(), "listening on") {
			return busid
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// importDevice asks usbipd for a device by hand, to leave package usbip out of
// it.
func importDevice(t *testing.T, busid string) (conn *os.File, devid uint32, speed usb.Speed) {
	t.Helper()
	tcp, err := net.Dial("tcp", "127.0.0.1:3240")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	request := make([]byte, 8+32)
	binary.BigEndian.PutUint32(request, 0x0111_8003)
	copy(request[8:], busid)
	if _, err := tcp.Write(request); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 8+312)
	if _, err := io.ReadFull(tcp, reply); err != nil {
		t.Fatal(err)
	}
	if code := binary.BigEndian.Uint32(reply); code != 0x0111_0003 {
		t.Fatalf("reply %#x", code)
	}
	numbers := reply[8+256+32:]
	conn, err = tcp.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	return conn, binary.BigEndian.Uint32(numbers)<<16 | binary.BigEndian.Uint32(numbers[4:]), usb.Speed(binary.BigEndian.Uint32(numbers[8:]))
}

func TestGuestRealDevice(t *testing.T) {
	busid := serveKeyboard(t)
	d := openKernel(t)
	conn, devid, speed := importDevice(t, busid)
	port, err := d.FreePort(speed)
	if err != nil {
		t.Fatal(err)
	}
	place, _ := d.Geometry().Place(port)
	hubs, err := d.RootHubs(place.Controller)
	if err != nil {
		t.Fatal(err)
	}
	hub := hubs[place.Hub]
	if err := hub.SetAuthorizedDefault(false); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := hub.SetAuthorizedDefault(true); err != nil {
			t.Error(err)
		}
	}()
	if err := d.Attach(vhci.AttachRequest{Port: port, SockFD: int(conn.Fd()), DevID: devid, Speed: speed}); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if p := until(t, d, port, vhci.StatusUsed); p.BusID != hub.BusID(place.Index) || p.DevID != devid || p.Speed != speed {
		t.Errorf("port %+v", p)
	}

	var device *vhci.Device
	for device, err = d.Device(port); errors.Is(err, fs.ErrNotExist); {
		device, err = d.Device(port)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	configuration := func() string {
		t.Helper()
		text, err := device.Root().ReadFile("bConfigurationValue")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if got := configuration(); got != "" {
		t.Errorf("configuration %q before it is authorized", got)
	}
	if err := device.SetAuthorized(true); err != nil {
		t.Fatal(err)
	}
	if got := configuration(); got != "1" {
		t.Errorf("configuration %q, want 1", got)
	}
	if _, err := os.Lstat(filepath.Join(device.Path(), device.BusID+":1.0", "driver")); err != nil {
		t.Errorf("no driver is bound: %v", err)
	}

	if err := d.Detach(port); err != nil {
		t.Fatal(err)
	}
	until(t, d, port, vhci.StatusNull)
	for err == nil { // the port is free before the device is gone
		err = device.SetAuthorized(true)
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
		t.Errorf("authorizing a device that is gone: %v", err)
	}
}

// Records go both ways between us and the stock tool.
func TestGuestRecordsOfTheStockTool(t *testing.T) {
	busid := serveKeyboard(t)
	d := openKernel(t)
	run(t, "usbip", "attach", "-r", "127.0.0.1", "-b", busid)
	port := -1
	ports, err := d.AllPorts()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		if !p.Free() {
			port = p.Number
		}
	}
	var records vhci.Records
	want := vhci.Record{Host: "127.0.0.1", Port: "3240", BusID: busid}
	if got, err := records.Read(0, port); err != nil || got != want {
		t.Errorf("the stock tool's record: %+v, %v; want %+v", got, err, want)
	}

	want = vhci.Record{Host: strings.Repeat("long.", 40) + "example", Port: "usbip", BusID: "9-9.9"}
	if err := records.Write(0, port, want); err != nil {
		t.Fatal(err)
	}
	device, err := d.Device(port)
	for errors.Is(err, fs.ErrNotExist) {
		device, err = d.Device(port)
	}
	if err != nil {
		t.Fatal(err)
	}
	device.Close()
	until(t, d, port, vhci.StatusUsed)
	url := "usbip://" + want.Host + ":" + want.Port + "/" + want.BusID
	if out := run(t, "usbip", "port"); !strings.Contains(out, url) {
		t.Errorf("the stock tool does not show %s:\n%s", url, out)
	}
	if err := records.Remove(0, port); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "usbip", "port"); !strings.Contains(out, "unknown host") {
		t.Errorf("the stock tool still knows the host:\n%s", out)
	}
}
