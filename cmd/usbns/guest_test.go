//go:build guest

//vmexec:modules vhci-hcd xhci-pci fuse
//vmexec:qemu -device qemu-xhci -device usb-kbd -device usb-tablet

package main

import (
	"bytes"
	"context"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/doctor"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

// TestGuestListMatchesStockTool compares our list with that of the usbip in
// Debian, names included, to the letter.
func TestGuestListMatchesStockTool(t *testing.T) {
	r := startExport(t, "127.0.0.1:3240", "scanner", "signpad", "fingerprint", "serial", "disk", "audio", "loopback:3-1.4")
	if ours, theirs := execute(t, "list", "-r", "127.0.0.1"), stockTool(t, "list", "-r", "127.0.0.1"); ours != theirs.Out {
		t.Errorf("usbns list prints\n%s\nusbip list prints\n%s", ours, theirs.Out)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// said is all that is seen of a run of usbip.
type said struct {
	Out, Err string
	OK       bool
}

// stockTool runs Debian's.
func stockTool(t *testing.T, args ...string) said {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/usbip", args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	return said{out.String(), stderr.String(), err == nil}
}

// ourTool runs ours.
func ourTool(t *testing.T, on controllers, args ...string) said {
	t.Helper()
	var out, stderr bytes.Buffer
	s := stock{
		ctx: t.Context(), out: &out, err: &stderr,
		controllers: on, sysfs: "/sys", port: usbip.DefaultPort,
	}
	ok := s.run(args)
	return said{out.String(), stderr.String(), ok}
}

// TestGuestUsbipIsTheStockTool gives the same arguments to Debian's usbip, which
// attaches to the kernel, and to ours, which attaches to a daemon, and compares
// all that they print.
func TestGuestUsbipIsTheStockTool(t *testing.T) {
	r := startExport(t, "127.0.0.1:3240", "scanner", "scanner")
	dir := startDaemon(t)
	execute(t, "controller", "create", "--run", dir)

	compare := func(line, ourLine string) {
		t.Helper()
		theirs := stockTool(t, strings.Fields(line)...)
		if strings.HasPrefix(line, "attach") && theirs.OK {
			untilPort(t, 0, vhci.StatusUsed)
		}
		ours := ourTool(t, control.NewClient(dir), strings.Fields(ourLine)...)
		if diff := cmp.Diff(theirs.common(), ours.common()); diff != "" {
			t.Errorf("usbip %s: of theirs (-) and ours (+)\n%s", line, diff)
		}
	}
	for _, line := range []string{
		"-x", "list", "list -x", "attach -r 127.0.0.1", "attach -b", "detach", "detach -p",
		"help list", "help attach", "help detach", "detach -p x", "detach -p -1",
		"list -l", "list -p -l", "list --par --lo", "list -r 127.0.0.1", "list --rem=127.0.0.1", "list -r nobody.invalid",
		"-t 1 list -r 127.0.0.1", "-t 1 attach -r 127.0.0.1 -b 1-1", "attach -r 127.0.0.1 -b 1-9",
		"port", "detach -p 1", "detach -p 250",
	} {
		compare(line, line)
	}
	// A device can be attached once, so each tool gets its own.
	compare("attach --remote 127.0.0.1 --device 1-1", "attach --remote 127.0.0.1 --device 1-2")
	compare("port", "port")
	compare("attach -r 127.0.0.1 -b 1-1", "attach -r 127.0.0.1 -b 1-2")
	compare("detach -p 0", "detach -p 0")
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestGuestUsbipSharesTheKernelWithTheStockTool has ours use the kernel's files:
// each tool sees and detaches what the other has attached, and says the same.
func TestGuestUsbipSharesTheKernelWithTheStockTool(t *testing.T) {
	r := startExport(t, "127.0.0.1:3240", "signpad", "fingerprint")
	files := findControllers(t.TempDir(), vhci.Sysfs{})
	both := func(line string) {
		t.Helper()
		theirs, ours := stockTool(t, strings.Fields(line)...), ourTool(t, files, strings.Fields(line)...)
		if diff := cmp.Diff(theirs, ours); diff != "" {
			t.Errorf("usbip %s: of theirs (-) and ours (+)\n%s", line, diff)
		}
	}
	both("port")
	if s := stockTool(t, "attach", "-r", "127.0.0.1", "-b", "1-1"); !s.OK {
		t.Fatal(s)
	}
	untilPort(t, 0, vhci.StatusUsed)
	both("port")
	if s := ourTool(t, files, "attach", "-r", "127.0.0.1", "-b", "1-2"); s != (said{OK: true}) {
		t.Fatal(s)
	}
	untilPort(t, 1, vhci.StatusUsed)
	both("port")
	if all := ourTool(t, files, "port", "-a"); strings.Count(all.Out, "Port in Use") != 2 || strings.Count(all.Out, "VHCI:") != 1 {
		t.Errorf("all ports are\n%s", all.Out)
	}
	both("detach -p 240")
	if s := ourTool(t, files, "detach", "-p", "0"); !s.OK || s.Err != "usbip: info: Port 0 is now detached!\n\n" {
		t.Errorf("ours detaches what theirs attached: %+v", s)
	}
	if s := stockTool(t, "detach", "-p", "1"); !s.OK {
		t.Errorf("theirs detaches what ours attached: %+v", s)
	}
	untilPort(t, 0, vhci.StatusNull)
	untilPort(t, 1, vhci.StatusNull)
	both("detach -p 0")
	both("port")
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// common makes equal what may differ: how many ports there are, the busids, and
// our option for the controller.
func (s said) common() said {
	s.Err = regexp.MustCompile(`maxports \d+`).ReplaceAllString(s.Err, "maxports N")
	s.Err = strings.ReplaceAll(s.Err, "1-2", "1-1")
	s.Out = regexp.MustCompile(`(?m)^ +\S+ -> usbip:(.*)/1-\d$`).ReplaceAllString(s.Out, "BUSID -> usbip:$1/BUSID")
	s.Out = regexp.MustCompile(`bus/dev .*`).ReplaceAllString(s.Out, "bus/dev N/N")
	s.Out = regexp.MustCompile(`(?m)^    -(i, --vhci-ix|d, --device  ).*\n`).ReplaceAllString(s.Out, "")
	return s
}

// untilPort waits for a port of the kernel to come to a status, which it does not
// announce, and for the device that is then used to be in sysfs, where the stock
// tool looks for it.
func untilPort(t *testing.T, port int, want vhci.Status) {
	t.Helper()
	d, err := vhci.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for {
		ports, err := d.Ports(0)
		if err != nil {
			t.Fatal(err)
		}
		if ports[port].Status == want && (want != vhci.StatusUsed || inSysfs(d, port)) {
			return
		}
		runtime.Gosched()
	}
}

func inSysfs(d *vhci.Driver, port int) bool {
	device, err := d.Device(port)
	if err != nil {
		return false
	}
	device.Close()
	return true
}

// TestGuestDoctorFindsTheKernelFit examines a kernel that has all that is
// needed; only 6.1 cannot open a thread. Its system requests are on, and depmod
// has not run.
func TestGuestDoctorFindsTheKernelFit(t *testing.T) {
	dir := startDaemon(t)
	host := doctor.Host{RunDir: dir, Answers: func(ctx context.Context) error {
		_, err := control.NewClient(dir).Controllers(ctx)
		return err
	}}
	for _, c := range host.Examine(t.Context()) {
		t.Log(c.Name, c.State, c.Found)
		want := doctor.OK
		if c.Name == "keyboards" || c.Name == "drivers" {
			want = doctor.Partly
		}
		if c.State != want && c.Name != "threads" {
			t.Errorf("%+v, want %s", c, want)
		}
		if c.Name == "vhci_hcd" && c.Found != "8 controllers of 15+15 ports" {
			t.Errorf("%+v", c)
		}
	}
}
