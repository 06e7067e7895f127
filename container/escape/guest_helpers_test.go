//go:build guest

package escape

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

// plug attaches an emulated device to the guest's kernel, as nobody should who
// has neighbours, and describes it once it has that many nodes.
func plug(t *testing.T, kind, serial string, nodes int) Target {
	t.Helper()
	device, err := emulate.Open(kind, emulate.Options{Serial: serial})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	file := os.NewFile(uintptr(fds[0]), "socketpair")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	const devid = 1<<16 | 2
	var served sync.WaitGroup
	served.Go(func() { _ = usbip.ServeDevice(context.Background(), conn, devid, device, nil) })

	kernel, err := vhci.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	port, err := kernel.FreePort(device.Speed())
	if err != nil {
		t.Fatal(err)
	}
	if err := kernel.Attach(vhci.AttachRequest{Port: port, SockFD: fds[1], DevID: devid, Speed: device.Speed()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		served.Wait()
		device.Close()
		<-device.Gone()
		for { // until the port is free again
			if _, err := describePort(kernel, port); err != nil {
				break
			}
		}
		kernel.Close()
	})
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		target, err := describePort(kernel, port)
		if err == nil && len(target.Nodes) >= nodes {
			target.Port = port
			return target
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("%s has %d nodes, want %d: %v", kind, len(target.Nodes), nodes, err)
		}
	}
}

func describePort(kernel *vhci.Driver, port int) (Target, error) {
	device, err := kernel.Device(port)
	if err != nil {
		return Target{}, err
	}
	defer device.Close()
	return Describe(device.Path())
}

// spread leaves the traces of the target that a careless host would.
func spread(t *testing.T, target *Target) {
	t.Helper()
	target.Names = []string{"hers.example"}
	target.Marks = []string{"usbns-mark-of-hers"}
	cmd := exec.Command("sleep")
	cmd.Args = []string{target.Marks[0], "infinity"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	target.Cgroup = "hers"
	cgroup := "/sys/fs/cgroup/hers"
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(cgroup) })
	var err error
	if target.CgroupHandle, err = HandleOf(cgroup); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	mustMount(t, target.Path, dir, "", unix.MS_BIND, "")
	write(t, "/run/udev/data/"+target.Nodes[0].number(), "E:ID_SERIAL=usbns_"+target.Serial)
	write(t, "/run/vhci_hcd/port0", "hers.example 3240 1-1\n")
	serve(t, "/run/hers.example.sock", target.Serial)
	serve(t, "@hers", target.Serial)
}

// serve is a daemon that tells all.
func serve(t *testing.T, socket, text string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })}
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
}

func mustMount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("umount %s: %v", target, err)
		}
	})
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(file) })
}

// provoke makes events of devices until the test ends.
func provoke(t *testing.T, targets ...Target) {
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			for _, target := range targets {
				// It goes when the device does.
				_ = os.WriteFile(filepath.Join(target.Path, "uevent"), []byte("change"), 0)
			}
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { close(done); ended.Wait() })
}
