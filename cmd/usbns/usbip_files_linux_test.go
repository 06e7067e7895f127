package main

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/vhci/vhcitest"
)

// TestUsbipWithoutADaemonUsesFiles attaches, lists and detaches through the files
// of a kernel.
func TestUsbipWithoutADaemonUsesFiles(t *testing.T) {
	kernel := vhcitest.New(t, 2, 1)
	files, ok := findControllers(t.TempDir(), kernel.Sysfs()).(controlFiles)
	if !ok {
		t.Fatal("there is a controller, but its files are not used")
	}
	files.records.Dir = filepath.Join(t.TempDir(), "vhci_hcd")
	e := startExport(t, anyPort, "scanner", "signpad", "fingerprint")
	_, port, err := net.SplitHostPort(e.addr)
	if err != nil {
		t.Fatal(err)
	}
	run := func(line string, want bool) (stdout, stderr string) {
		t.Helper()
		var out, failed bytes.Buffer
		s := stock{ctx: t.Context(), out: &out, err: &failed, controllers: files, port: port}
		if ok := s.run(strings.Fields(line)); ok != want {
			t.Errorf("usbip %s: success is %v: %s", line, ok, &failed)
		}
		return out.String(), failed.String()
	}

	run("attach -r 127.0.0.1 -b 1-1", true)
	busid := kernel.Enumerate(0)
	out, _ := run("port", true)
	if want := busid + " -> usbip://127.0.0.1:" + port + "/1-1\n"; !strings.Contains(out, want) {
		t.Errorf("the ports are\n%s", out)
	}
	run("attach -r 127.0.0.1 -b 1-2", true)
	if _, failed := run("attach -r 127.0.0.1 -b 1-3", false); !strings.Contains(failed, "no free port") {
		t.Errorf("an attach too many: %s", failed)
	}
	if out, _ := run("port -a", true); strings.Count(out, "VHCI: ") != 1 {
		t.Errorf("all ports are\n%s", out)
	}
	if _, failed := run("port -i 1", false); !strings.Contains(failed, "open vhci_driver") {
		t.Errorf("a controller without files: %s", failed)
	}
	run("detach -p 0", true)
	if _, failed := run("detach -p 0", true); !strings.Contains(failed, "already detached") {
		t.Errorf("a second detach: %s", failed)
	}
	if _, err := files.records.Read(0, 0); err == nil {
		t.Error("the record of a detached port is left")
	}
	run("detach -p 2", true)
	if err := e.end(); err != nil {
		t.Error(err)
	}
}

func TestUsbipPrefersADaemon(t *testing.T) {
	kernel := vhcitest.New(t, 1, 1)
	if _, ok := findControllers(startDaemon(t), kernel.Sysfs()).(*control.Client); !ok {
		t.Error("there is a daemon, but files are used")
	}
	if _, ok := findControllers(t.TempDir(), vhci.Sysfs{Root: t.TempDir()}).(*control.Client); !ok {
		t.Error("there is neither daemon nor controller, and nobody says how to start a daemon")
	}
}
