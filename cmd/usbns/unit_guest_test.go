//go:build guest

//vmexec:file ../../docs/usbns.service

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

// TestGuestUnitsCapabilitiesSuffice runs a daemon with the capabilities that the
// unit for systemd leaves it, and has it do what needs some.
func TestGuestUnitsCapabilitiesSuffice(t *testing.T) {
	dir := startUnit(t)
	e := startExport(t, anyPort, "signpad", "fingerprint")
	execute(t, "controller", "create", "--run", dir, "--driver", "kernel")
	execute(t, "controller", "create", "--run", dir)
	if got := execute(t, "attach", "--run", dir, "-r", e.addr, "-b", "1-1", "-i", "0"); got != "port 0\n" {
		t.Errorf("attach to the kernel prints %q", got)
	}
	attachByFile(t, filepath.Join(dir, "sys/devices/platform/vhci_hcd.1"), e.addr, "1-2")
	if text := execute(t, "port", "--run", dir, "-a"); strings.Count(text, "Port in Use") != 2 {
		t.Errorf("the ports are\n%s", text)
	}
	execute(t, "controller", "delete", "--run", dir, "0", "1")
	if err := e.end(); err != nil {
		t.Error(err)
	}
}

// startUnit runs a daemon until the test ends.
func startUnit(t *testing.T) (dir string) {
	t.Helper()
	unit, err := os.ReadFile("../../docs/usbns.service")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if m == nil {
		t.Fatal("the unit bounds no capabilities")
	}
	set := "-all"
	for name := range strings.FieldsSeq(string(m[1])) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	program := filepath.Join(base, "usbns")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(base, "run")
	cmd := exec.Command("setpriv", "--bounding-set", set, "--no-new-privs", program, "daemon", "--run", dir)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ends with %v", err)
		}
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return dir
}

func attachByFile(t *testing.T, path, addr, busid string) {
	t.Helper()
	conn, err := usbip.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	info, err := usbip.RequestImport(t.Context(), conn, busid)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	files, err := vhci.OpenPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	if err := files.Attach(vhci.AttachRequest{SockFD: int(socket.Fd()), DevID: info.DevID(), Speed: info.Speed}); err != nil {
		t.Fatal(fmt.Errorf("attach by file: %w", err))
	}
}
