//go:build guest

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/runtimestest"
	"github.com/usbns/usbns/internal/thread"
)

// stalledExport is reached at 127.0.0.1 in the network of a process. It passes an
// import on to the exporter at an address here, and nothing after that. It tells
// when the importer has sent its first transfer, and when it has left.
func stalledExport(t *testing.T, pid int, exporter string) (importing, left <-chan struct{}) {
	t.Helper()
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	must.OK(t, err)
	defer network.Close()
	var l net.Listener
	must.OK(t, thread.Run(func() error {
		if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		l, err = net.Listen("tcp", "127.0.0.1:3240")
		return err
	}))
	t.Cleanup(func() { l.Close() })
	first, end := make(chan struct{}), make(chan struct{})
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer close(end)
		defer conn.Close()
		behind, err := net.Dial("tcp", exporter)
		if err != nil {
			return
		}
		defer behind.Close()
		_, _ = io.CopyN(behind, conn, 8+32)  // OP_REQ_IMPORT
		_, _ = io.CopyN(conn, behind, 8+312) // OP_REP_IMPORT
		if _, err := io.CopyN(io.Discard, conn, 48); err == nil {
			close(first)
		}
		_, _ = io.Copy(io.Discard, conn)
	}()
	return first, end
}

// A container that is killed while its attach waits for the device leaves
// nothing, and its importer leaves the exporter.
func TestGuestRunKilledAmidAttach(t *testing.T) {
	runtimestest.CheckLeaks(t)
	const dir = "/run/usbns-killed"
	e := startExport(t, "127.0.0.1:0", "signpad")
	defer e.end()
	startDaemonProcess(t, dir)
	s := startRun(t, dir, "--new")
	s.Say("true") // it runs
	inside, err := control.NewClient(dir).Container(t.Context(), "0")
	must.OK(t, err)
	importing, left := stalledExport(t, inside.PID, e.addr)
	s.Say("{ /usr/sbin/usbip attach -r 127.0.0.1 -b 1-1 >/dev/null 2>&1 & }")
	select {
	case <-importing:
	case <-left:
		t.Fatal("the attach ended before a transfer was sent")
	}
	must.OK(t, s.cmd.Process.Signal(syscall.SIGKILL))
	_ = s.cmd.Wait()
	<-left
	waitUntil(t, "no controller is left", func() bool {
		return execute(t, "controller", "list", "--run", dir, "--json") == "[]\n"
	})
	if out, err := exec.Command("usbip", "port").CombinedOutput(); err != nil || string(out) != "Imported USB devices\n====================\n" {
		t.Errorf("the kernel's ports: %v\n%s", err, out)
	}
}

// What a container leaves that ends while no daemon is there ends with the next
// one: a device that the kernel has by itself, too.
func TestGuestRunEndsWithoutDaemon(t *testing.T) {
	runtimestest.CheckLeaks(t)
	const dir = "/run/usbns-without"
	e := startExport(t, "127.0.0.1:0", "serial")
	defer e.end()
	for _, driver := range []string{"kernel", "kernel-direct"} {
		kill := startDaemonProcess(t, dir)
		s := startRun(t, dir, "--new", "--driver", driver)
		s.Say(":") // it runs
		execute(t, "attach", "--run", dir, "-r", e.addr, "-b", "1-1", "-i", "0")
		kill(syscall.SIGKILL)
		if status := s.exit(0); status != 0 {
			t.Errorf("exit status %d", status)
		}
		if kernelDevice(t) == "" {
			t.Errorf("%s: the device went without a daemon", driver)
		}
		kill = startDaemonProcess(t, dir)
		waitUntil(t, "the kernel has no device", func() bool { return kernelDevice(t) == "" })
		if got := execute(t, "controller", "list", "--run", dir, "--json"); got != "[]\n" {
			t.Errorf("%s: controllers are left: %s", driver, got)
		}
		kill(syscall.SIGTERM)
	}
}
