//go:build linux

package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/benchtable"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
)

const many = 10_000

// TestManyControllersInOneDaemon uses the last of ten thousand, before and after
// the daemon is killed.
func TestManyControllersInOneDaemon(t *testing.T) {
	dir, vault := runDir(t), t.TempDir()
	client := control.NewClient(dir)
	daemon := startReady(t, dir, vault)
	made, err := client.Create(t.Context(), control.Create{Count: many, Driver: "user"})
	must.OK(t, err)
	if len(made) != many || made[many-1].Index != many-1 {
		t.Fatalf("%d controllers were made", len(made))
	}
	useLast(t, dir, client)
	daemon.end(syscall.SIGKILL)
	daemon = startReady(t, dir, vault)
	list, err := client.Controllers(t.Context())
	must.OK(t, err)
	if len(list) != many {
		t.Errorf("%d controllers are left", len(list))
	}
	useLast(t, dir, client)
	daemon.end(syscall.SIGTERM)
}

func useLast(t *testing.T, dir string, client *control.Client) {
	t.Helper()
	scanner, err := emulate.NewScanner(emulate.Options{})
	must.OK(t, err)
	defer scanner.Close()
	last := fmt.Sprint(many - 1)
	port, err := client.Attach(t.Context(), serveTCP(t, scanner), control.Attach{
		Controller: last, Port: control.AnyPort, DevID: 1, Speed: int(usb.SpeedFull),
	})
	must.OK(t, err)
	setup := usb.GetDescriptor(usb.DescDevice, 0, 0, 18).Bytes()
	if done, err := client.Transfer(t.Context(), last, port, control.Transfer{Setup: setup[:]}); err != nil || done.Actual != 18 {
		t.Errorf("the device's descriptor: %v, %v", done.Data, err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "sys/devices/platform/vhci_hcd."+last+"/status"))
	if err != nil {
		t.Logf("the status file is not read: %v", err) // it needs root and FUSE
	} else if !strings.Contains(string(status), "hs  0000 006 002 ") {
		t.Errorf("status is\n%s", status)
	}
}

// TestNoDescriptorLeft has an attach wait until the daemon has descriptors again.
func TestNoDescriptorLeft(t *testing.T) {
	dir := runDir(t)
	client := control.NewClient(dir)
	var before unix.Rlimit
	daemon := start(t, dir, t.TempDir(), "no attach is accepted", func(p *process) {
		if err := unix.Prlimit(p.Process.Pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
			t.Error(err)
		}
	})
	daemon.awaitReady(t)
	_, err := client.Create(t.Context(), control.Create{Driver: "user"})
	must.OK(t, err)
	must.OK(t, unix.Prlimit(daemon.Process.Pid, unix.RLIMIT_NOFILE, nil, &before))
	must.OK(t, unix.Prlimit(daemon.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: before.Max}, nil))
	scanner, err := emulate.NewScanner(emulate.Options{})
	must.OK(t, err)
	defer scanner.Close()
	_, err = client.Attach(t.Context(), serveTCP(t, scanner), control.Attach{Controller: "0", DevID: 1, Speed: int(usb.SpeedFull)})
	must.OK(t, err)
	daemon.end(syscall.SIGTERM)
}

// serveTCP serves dev on one end of a connection and returns the other.
func serveTCP(t testing.TB, dev usb.Device) *net.TCPConn {
	t.Helper()
	here, peer := must.Connect(t)
	usbiptest.Serve(t, peer, 1, dev)
	return here
}

// BenchmarkManyControllers tells what a controller without devices costs a
// daemon.
func BenchmarkManyControllers(b *testing.B) {
	for range b.N {
		dir := runDir(b)
		daemon := startReady(b, dir, b.TempDir())
		client := control.NewClient(dir)
		_, err := client.Controllers(b.Context()) // which is not for free the first time
		must.OK(b, err)
		before := resident(b, daemon.Process.Pid)
		_, err = client.Create(b.Context(), control.Create{Count: many, Driver: "user"})
		must.OK(b, err)
		benchtable.Report(b, float64(resident(b, daemon.Process.Pid)-before)/many, 4, "KiB/controller")
		daemon.end(syscall.SIGTERM)
	}
}

// BenchmarkManyDevices tells what an attached device that does nothing costs a
// daemon.
func BenchmarkManyDevices(b *testing.B) {
	var files unix.Rlimit
	must.OK(b, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	n := min(many, int(files.Cur)/3) // of a connection one end is here, the other for a moment
	dir := runDir(b)
	client := control.NewClient(dir)
	for range b.N {
		daemon := startReady(b, dir, b.TempDir())
		scanner, err := emulate.NewLoopback(emulate.Options{Speed: usb.SpeedFull})
		must.OK(b, err)
		_, err = client.Create(b.Context(), control.Create{Count: n, Driver: "user", HubPorts: 1})
		must.OK(b, err)
		attach := func(controller int) {
			conn := serveTCP(b, scanner)
			_, err := client.Attach(b.Context(), conn, control.Attach{Controller: fmt.Sprint(controller), DevID: 1, Speed: int(usb.SpeedFull)})
			must.OK(b, err)
			conn.Close()
		}
		attach(0)
		before := resident(b, daemon.Process.Pid)
		for i := 1; i < n; i++ {
			attach(i)
		}
		b.ReportMetric(float64(n), "devices")
		benchtable.Report(b, float64(resident(b, daemon.Process.Pid)-before)/float64(n-1), 16, "KiB/device")
		benchtable.Report(b, float64(threads(b, daemon.Process.Pid)), 100, "threads")
		daemon.end(syscall.SIGTERM)
		scanner.Close()
	}
}

func threads(tb testing.TB, pid int) int {
	tb.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	must.OK(tb, err)
	return len(tasks)
}

// resident returns the memory of a process in KiB.
func resident(tb testing.TB, pid int) (kib int) {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must.OK(tb, err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	_, err = fmt.Sscan(rest, &kib)
	must.OK(tb, err)
	return kib
}
