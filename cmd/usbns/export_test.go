package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// anyPort lets the kernel choose.
const anyPort = "127.0.0.1:0"

// An exportRun is a running "usbns export".
type exportRun struct {
	*background // its lines are one a device
	addr        string
}

func startExport(t *testing.T, listen string, devices ...string) *exportRun {
	t.Helper()
	args := []string{"export", "--listen", listen}
	for _, d := range devices {
		args = append(args, "--device", d)
	}
	b, err := start(len(devices), t.Output(), args...)
	if err != nil {
		t.Fatal(err)
	}
	r := &exportRun{background: b}
	_, r.addr, _ = strings.Cut(r.lines[0], " on ")
	return r
}

// execute runs a command to its end and returns what it printed.
func execute(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(t.Output())
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("usbns %v: %v", args, err)
	}
	return out.String()
}

// importDevice imports a device and configures it, so that it works.
func importDevice(t *testing.T, addr, busid string) (*usbip.Importer, error) {
	t.Helper()
	conn, err := usbip.Dial(t.Context(), addr)
	if err != nil {
		return nil, err
	}
	dev, err := usbip.Import(t.Context(), conn, busid, nil)
	if err != nil {
		return nil, err
	}
	value := dev.Descriptors().Configurations()[0].Value
	if _, err := usb.ControlTransfer(t.Context(), dev, usb.SetConfiguration(value), nil); err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

func TestExportPrintsALineADevice(t *testing.T) {
	r := startExport(t, anyPort, "scanner", "loopback:3-1.4", "scanner")
	for i, busid := range []string{"1-1: ", "3-1.4: ", "1-3: "} {
		if !strings.HasPrefix(r.lines[i], busid) {
			t.Errorf("line %d is %q, want busid %q", i, r.lines[i], busid)
		}
	}
	if err := r.end(); err != nil {
		t.Errorf("an interrupted export ends with %v", err)
	}
}

func TestListShowsWhatIsExported(t *testing.T) {
	r := startExport(t, anyPort, "scanner", "disk")
	text := execute(t, "list", "-r", r.addr)
	for _, want := range []string{
		"Exportable USB devices\n======================\n - " + r.addr + "\n",
		"        1-1: ", " (1209:0001)\n", "           :  0 - ", "(03/01/01)\n",
		"        1-2: ", " (1209:0006)\n", "(08/06/50)\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the list lacks %q:\n%s", want, text)
		}
	}
	var devices []listed
	if err := json.Unmarshal([]byte(execute(t, "list", "-r", r.addr, "--json")), &devices); err != nil {
		t.Fatal(err)
	}
	if len(devices) != 2 || devices[0].BusID != "1-1" || devices[1].Vendor != "1209" {
		t.Errorf("the list in JSON is %+v", devices)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func TestExportTellsDevicesWhatStandardInputSays(t *testing.T) {
	r := startExport(t, anyPort, "scanner")
	owner, err := importDevice(t, r.addr, "1-1")
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	if _, err := io.WriteString(r.stdin, "9-9 lost\n\n1-1 4006381333931\n"); err != nil {
		t.Fatal(err)
	}
	got, err := readLine(func() ([]byte, error) {
		u := usb.URB{Endpoint: 1 | usb.DirIn, Type: usb.Interrupt, Flags: usb.FlagDirIn, Buffer: make([]byte, 8)}
		err := usb.Do(t.Context(), owner, &u)
		return u.Buffer[:u.Actual], err
	})
	if err != nil || got != "4006381333931" {
		t.Errorf("the importer received %q, %v", got, err)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func TestDeviceInUseIsRefusedAndHidden(t *testing.T) {
	r := startExport(t, anyPort, "scanner")
	owner, err := importDevice(t, r.addr, "1-1")
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	if _, err := importDevice(t, r.addr, "1-1"); !errors.Is(err, usbip.OpBusy) {
		t.Errorf("a second import fails with %v, want %v", err, usbip.OpBusy)
	}
	if text := execute(t, "list", "-r", r.addr); strings.Contains(text, "1-1") {
		t.Errorf("a device in use is listed:\n%s", text)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func TestNamesAreOptional(t *testing.T) {
	defer func(before []string) { usbIDs = before }(usbIDs)
	path := filepath.Join(t.TempDir(), "usb.ids")
	usbIDs = []string{filepath.Join(t.TempDir(), "none"), path}
	if names := readNames(); names != nil {
		t.Errorf("names from nowhere: %v", names)
	}
	if err := os.WriteFile(path, []byte("1d6b  Linux Foundation\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readNames().Vendor(0x1d6b); got != "Linux Foundation" {
		t.Errorf("the vendor is %q", got)
	}
}
