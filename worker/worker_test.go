//go:build linux

package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/emulate/emulatetest"
	"github.com/usbns/usbns/internal/benchtable"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/worker"
)

func TestMain(m *testing.M) {
	if worker.Called() {
		os.Exit(worker.Main())
	}
	if os.Args[0] == worker.CaptiveName {
		os.Exit(worker.Captive())
	}
	if os.Args[0] == relayName {
		os.Exit(beRelay())
	}
	os.Exit(benchtable.Main(m, exporters))
}

const (
	devid   = 0x10002
	patient = time.Minute
)

// socketPath is short enough for the address of a socket, wherever tests run.
func socketPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(must.TempDir(t), "0")
}

func start(t testing.TB, path string) *worker.Client {
	t.Helper()
	c, err := worker.Start(t.Context(), path, func(error, string) {})
	must.OK(t, err)
	t.Cleanup(c.Kill)
	return c
}

// export serves d over TCP and returns the importer's end.
func export(t testing.TB, d usb.Device) *net.TCPConn {
	t.Helper()
	here, peer := must.Connect(t)
	t.Cleanup(func() { d.Close() })
	usbiptest.Serve(t, peer, devid, d)
	return here
}

func open(t testing.TB, kind string) usb.Device {
	t.Helper()
	d, err := emulate.Open(kind, emulate.Options{})
	must.OK(t, err)
	return d
}

// serve has the worker serve d and returns the kernel's end.
func serve(t testing.TB, d *worker.Device) *net.UnixConn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.OK(t, err)
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		must.OK(t, err)
		f.Close()
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	must.OK(t, d.Serve(t.Context(), conns[0]))
	conns[0].Close()
	return conns[1]
}

func importDevice(t testing.TB, c *worker.Client, conn syscall.Conn) (*worker.Device, *usb.Descriptors) {
	t.Helper()
	d, raw, err := c.Import(t.Context(), conn, devid, usb.SpeedHigh, 10*time.Second)
	must.OK(t, err)
	desc, err := usb.NewDescriptors(raw)
	must.OK(t, err)
	return d, desc
}

// A device that went through a worker is still a device.
func TestConformanceThroughAWorker(t *testing.T) {
	c := start(t, socketPath(t))
	for kind, more := range map[string]map[string]emulatetest.Test{
		"loopback": emulatetest.Loopback, "audio": emulatetest.Audio, "serial": emulatetest.Endpoints,
	} {
		t.Run(kind, func(t *testing.T) {
			for _, set := range []map[string]emulatetest.Test{emulatetest.Device, more} {
				emulatetest.Run(t, set, func(t *testing.T) usb.Device {
					d, desc := importDevice(t, c, export(t, open(t, kind)))
					imp, err := usbip.NewImporter(t.Context(), serve(t, d), devid, usb.SpeedHigh, &usbip.ImportOptions{Descriptors: desc})
					must.OK(t, err)
					t.Cleanup(func() { imp.Close(); must.Await(t, "end of the device", d.Ended()) })
					return imp
				})
			}
		})
	}
}

func TestWorkerOutlivesItsClient(t *testing.T) {
	path := socketPath(t)
	c := start(t, path)
	d, desc := importDevice(t, c, export(t, open(t, "loopback")))
	kernel := serve(t, d)
	c.Close()

	again, err := worker.Open(t.Context(), path)
	must.OK(t, err)
	t.Cleanup(again.Kill)
	held := again.Held()
	if again.Nonce() != c.Nonce() || len(held) != 1 || held[0].Number() != d.Number() {
		t.Fatalf("worker %s holds %v, want %s and device %d", again.Nonce(), held, c.Nonce(), d.Number())
	}
	if again.Take(d.Number()) != held[0] || again.Take(d.Number()) != nil || len(again.Held()) != 0 {
		t.Error("a device can be taken twice, or not at all")
	}
	imp, err := usbip.NewImporter(t.Context(), kernel, devid, usb.SpeedHigh, &usbip.ImportOptions{Descriptors: desc})
	must.OK(t, err)
	if _, err := usb.ControlTransfer(t.Context(), imp, usb.SetConfiguration(1), nil); err != nil {
		t.Error(err)
	}
	held[0].Close()
	must.Await(t, "end of the device", held[0].Ended())
	must.Await(t, "end of the kernel's connection", imp.Gone())
	again.Close()
	gone(t, path)
}

// gone waits until no worker listens on path.
func gone(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
		c, err := worker.Open(t.Context(), path)
		if errors.Is(err, worker.ErrNone) {
			return
		}
		if err == nil {
			c.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("a worker without a device is still there: %v", err)
		}
	}
}

func TestWhyADeviceEnds(t *testing.T) {
	c := start(t, socketPath(t))
	t.Run("the kernel lets go", func(t *testing.T) {
		d, _ := importDevice(t, c, export(t, open(t, "loopback")))
		serve(t, d).Close()
		must.Await(t, "end", d.Ended())
		must.OK(t, d.Err())
	})
	t.Run("the exporter closes", func(t *testing.T) {
		here, peer := must.Connect(t)
		dev := open(t, "loopback")
		defer dev.Close()
		served := make(chan error, 1)
		go func() { served <- usbip.ServeDevice(context.Background(), peer, devid, dev, nil) }()
		d, _ := importDevice(t, c, here)
		here.Close()
		serve(t, d)
		peer.Close()
		must.Await(t, "end", d.Ended())
		if d.Err() == nil {
			t.Error("nobody knows why")
		}
		<-served
	})
	t.Run("the worker dies", func(t *testing.T) {
		d, _ := importDevice(t, c, export(t, open(t, "loopback")))
		kernel := serve(t, d)
		c.Kill()
		must.Await(t, "end", d.Ended())
		if _, err := kernel.Read(make([]byte, 1)); err == nil {
			t.Error("the kernel's connection goes on")
		}
		if _, _, err := c.Import(t.Context(), export(t, open(t, "loopback")), devid, usb.SpeedHigh, time.Second); err == nil {
			t.Error("a dead worker imports")
		}
	})
}

// A worker that panics is heard, as far as it is worth it.
func TestFailedWorkerIsHeard(t *testing.T) {
	path := socketPath(t)
	type end struct {
		exit   error
		output string
	}
	ends := make(chan end, 1)
	c, err := worker.Start(t.Context(), path, func(exit error, output string) { ends <- end{exit, output} })
	must.OK(t, err)
	t.Cleanup(c.Kill)
	// With so many devices that a pipe does not hold all it says.
	var imports sync.WaitGroup
	defer imports.Wait()
	for range 60 {
		here, peer := must.Connect(t)
		imports.Go(func() { _, _, _ = c.Import(t.Context(), here, devid, usb.SpeedHigh, patient) })
		_, err := peer.Read(make([]byte, usbip.HeaderSize))
		must.OK(t, err)
	}
	// The runtime does as in a panic, and tells of all goroutines.
	must.OK(t, unix.Kill(listener(t, path), unix.SIGQUIT))
	select {
	case e := <-ends:
		if e.exit.Error() != "exit status 2" || !strings.HasPrefix(e.output, "SIGQUIT: quit\n") ||
			!strings.Contains(e.output, "\ngoroutine ") || len(e.output) > 4<<10 {
			t.Errorf("%v, and %d bytes:\n%s", e.exit, len(e.output), e.output)
		}
	case <-time.After(patient):
		t.Error("nobody tells how it ended")
	}
	must.Await(t, "end of the worker", c.Dead())
}

func TestSilentExporter(t *testing.T) {
	c := start(t, socketPath(t))
	here, _ := must.Connect(t)
	_, _, err := c.Import(t.Context(), here, devid, usb.SpeedHigh, 50*time.Millisecond)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	here, peer := must.Connect(t)
	go func() {
		_, _ = peer.Read(make([]byte, usbip.HeaderSize))
		cancel()
	}()
	if _, _, err := c.Import(ctx, here, devid, usb.SpeedHigh, patient); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	here.Close()
	_, _ = io.Copy(io.Discard, peer)                   // until the worker has closed it
	importDevice(t, c, export(t, open(t, "loopback"))) // the worker works
}

// What the kernel says of a worker's rights, thread by thread.
func TestSandbox(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	pid := listener(t, path)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	must.OK(t, err)
	want := map[string]string{"NoNewPrivs": "1", "Seccomp": "2"}
	if os.Geteuid() == 0 {
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			want[set] = "0000000000000000"
		}
		want["Uid"] = "65534\t65534\t65534\t65534"
		want["Gid"] = want["Uid"]
		want["Groups"] = ""
	}
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		must.OK(t, err)
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			if w, ok := want[key]; ok && strings.TrimSpace(value) != w {
				t.Errorf("thread %s: %s is %q, want %q", task.Name(), key, strings.TrimSpace(value), w)
			}
		}
	}
	stderr, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid))
	if err != nil || !strings.HasPrefix(stderr, "pipe:") {
		t.Errorf("it writes to %s, %v", stderr, err)
	}
	for _, link := range readLinks(t, fmt.Sprintf("/proc/%d/fd", pid)) {
		if link != "/dev/null" && link != stderr && !strings.HasPrefix(link, "socket:") && !strings.HasPrefix(link, "anon_inode:") {
			t.Errorf("it has %s open", link)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil || len(entries) != 0 {
		t.Errorf("its root has %v, %v", entries, err)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil || strings.Count(string(mounts), "\n") != 1 {
		t.Errorf("its mounts are\n%s%v", mounts, err)
	}
	for _, ns := range []string{"mnt", "net", "ipc", "uts"} {
		mine, err1 := os.Readlink("/proc/self/ns/" + ns)
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err := errors.Join(err1, err2); err != nil || mine == its {
			t.Errorf("namespace %s is ours, %v", ns, err)
		}
	}
}

func readLinks(t *testing.T, dir string) (links []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must.OK(t, err)
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		must.OK(t, err)
		links = append(links, link)
	}
	return links
}

// listener returns the process that listens on path.
func listener(t *testing.T, path string) int {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	must.OK(t, err)
	defer c.Close()
	raw, err := c.SyscallConn()
	must.OK(t, err)
	pid := 0
	must.OK(t, raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	}))
	if pid == 0 || pid == os.Getpid() {
		t.Fatalf("process %d listens", pid)
	}
	return pid
}

func TestNothingIsLeft(t *testing.T) {
	path := socketPath(t)
	before := len(must.Descriptors(t))
	for range 5 {
		c, err := worker.Start(t.Context(), path, func(exit error, output string) {
			t.Errorf("it failed: %v: %s", exit, output)
		})
		must.OK(t, err)
		dev := open(t, "loopback")
		here, peer := must.Connect(t)
		served := make(chan error, 1)
		go func() { served <- usbip.ServeDevice(context.Background(), peer, devid, dev, nil) }()
		d, _ := importDevice(t, c, here)
		here.Close()
		kernel := serve(t, d)
		d.Close()
		must.Await(t, "end", d.Ended())
		kernel.Close()
		<-served
		dev.Close()
		c.Close()
		gone(t, path)
	}
	must.Become(t, "as few descriptors as before", func() bool { return len(must.Descriptors(t)) <= before })
}
