//go:build linux

package vhci_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/vhci/vhcitest"
)

func TestOpenKernel(t *testing.T) {
	kernel := vhcitest.New(t, 8, 15)
	d := open(t, kernel.Sysfs(), 0)
	if got, want := d.Geometry(), (vhci.Geometry{Controllers: 8, HubPorts: 15}); got != want {
		t.Errorf("geometry %+v, want %+v", got, want)
	}
	if d.Index() != 0 {
		t.Errorf("index %d", d.Index())
	}
	ports, err := d.AllPorts()
	if err != nil {
		t.Fatal(err)
	}
	if len(ports) != 240 {
		t.Fatalf("%d ports, want 240", len(ports))
	}
	for i, p := range ports {
		place, _ := d.Geometry().Place(i)
		if want := (vhci.Port{Number: i, Hub: place.Hub, Status: vhci.StatusNull}); p != want {
			t.Errorf("port %+v, want %+v", p, want)
		}
	}
}

func TestOpenSingleController(t *testing.T) {
	root := tree(t, map[string]string{
		"vhci_hcd.7/nports": "16\n",
		"vhci_hcd.7/status": statusText(0, 8),
	})
	path := filepath.Join(root, "devices/platform/vhci_hcd.7")
	link := filepath.Join(t.TempDir(), "mine")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() (*vhci.Driver, error){
		"by index":       func() (*vhci.Driver, error) { return vhci.Sysfs{Root: root}.Open(7) },
		"by path":        func() (*vhci.Driver, error) { return vhci.OpenPath(path) },
		"by path/":       func() (*vhci.Driver, error) { return vhci.OpenPath(path + "/") },
		"through a link": func() (*vhci.Driver, error) { return vhci.OpenPath(link) },
	} {
		t.Run(name, func(t *testing.T) {
			d, err := open()
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if d.Index() != 7 || d.Path() != path || d.Geometry() != (vhci.Geometry{Controllers: 1, HubPorts: 8}) {
				t.Errorf("index %d, path %s, geometry %+v", d.Index(), d.Path(), d.Geometry())
			}
			if ports, err := d.AllPorts(); err != nil || len(ports) != 16 {
				t.Errorf("%d ports, %v", len(ports), err)
			}
		})
	}
}

// In a container, files of usbns cover those of vhci_hcd.0 but the kernel's
// status.1 and its other controllers' directories can still be there.
func TestOpenIgnoresStatusFilesOfOthers(t *testing.T) {
	d := open(t, vhci.Sysfs{Root: tree(t, map[string]string{
		"vhci_hcd.0/nports":         "30\n",
		"vhci_hcd.0/status":         statusText(0, 15),
		"vhci_hcd.0/status.1":       "not to be read",
		"vhci_hcd.1/uevent":         "",
		"vhci_hcd.1/subsystem/none": "",
	})}, 0)
	if ports, err := d.AllPorts(); err != nil || len(ports) != 30 {
		t.Errorf("%d ports, %v", len(ports), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	const dir = "vhci_hcd.0/"
	one := map[string]string{dir + "nports": "16\n", dir + "status": statusText(0, 8)}
	with := func(name, text string) map[string]string {
		files := map[string]string{dir + "nports": one[dir+"nports"], dir + "status": one[dir+"status"]}
		files[dir+name] = text
		return files
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		index int
		want  error
		says  string
	}{
		{"no sysfs", nil, 0, vhci.ErrNotLoaded, "modprobe vhci-hcd"},
		{"no controller at all", map[string]string{"serial8250/uevent": ""}, 0, vhci.ErrNotLoaded, "--driver user"},
		{"another controller", one, 1, vhci.ErrNoController, "vhci_hcd.1"},
		{"a negative index", one, -1, vhci.ErrNoController, "vhci_hcd.-1"},
		{"another of a stock kernel's", map[string]string{"vhci_hcd.3/uevent": ""}, 3, vhci.ErrNoController, "vhci_hcd.0"},
		{"one that did not start", map[string]string{"vhci_hcd.0/uevent": ""}, 0, vhci.ErrNoController, "USB buses"},
		{"nports is empty", with("nports", ""), 0, syscall.EINVAL, "nports"},
		{"nports is no number", with("nports", "many\n"), 0, syscall.EINVAL, "many"},
		{"nports is negative", with("nports", "-16\n"), 0, syscall.EINVAL, "nports"},
		{"nports is 0", with("nports", "0\n"), 0, syscall.EINVAL, "nports"},
		{"nports is no multiple", with("nports", "24\n"), 0, syscall.EINVAL, "16"},
		{"nports is less than a controller", with("nports", "8\n"), 0, syscall.EINVAL, "16"},
		{"nports is too many", with("nports", "2064\n"), 0, syscall.EINVAL, "2064"},
		{"nports is huge", with("nports", strings.Repeat("0", 4096)+"16\n"), 0, syscall.EINVAL, "4096"},
		{"status has no ports", with("status", statusText(0, 0)), 0, syscall.EINVAL, "0 ports"},
		{"status has an odd port", with("status", lines(statusText(0, 8), 1+15)), 0, syscall.EINVAL, "15 ports"},
		{"status has too many", with("status", statusText(0, 16)), 0, syscall.EINVAL, "32 ports"},
		{"status is cut short", with("status", statusText(0, 8)[:100]), 0, syscall.EINVAL, "cut short"},
		{"status is huge", with("status", statusText(0, 60)), 0, syscall.EINVAL, "4096"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			before := len(must.Descriptors(t))
			d, err := vhci.Sysfs{Root: root}.Open(tt.index)
			if err == nil {
				d.Close()
				t.Fatalf("opened, geometry %+v", d.Geometry())
			}
			if op, ok := errors.AsType[*vhci.OpError](err); !ok || op.Op != "open" {
				t.Errorf("%#v is not the OpError of open", err)
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q, want %q and the word %q", err, tt.want, tt.says)
			}
			if after := len(must.Descriptors(t)); after != before {
				t.Errorf("%d files open, %d before", after, before)
			}
		})
	}
}

func TestOpenPathRefuses(t *testing.T) {
	root := tree(t, map[string]string{"vhci_hcd.x/nports": "16\n", "vhci_hcd.01/nports": "16\n", "other/nports": "16\n"})
	for _, name := range []string{"vhci_hcd.x", "vhci_hcd.01", "other", "vhci_hcd.5", ""} {
		d, err := vhci.OpenPath(filepath.Join(root, "devices/platform", name))
		if err == nil {
			d.Close()
			t.Errorf("%q was opened", name)
		}
	}
}

// A link out of the tree must not make the driver read, or write, elsewhere.
func TestOpenStaysInside(t *testing.T) {
	outside := tree(t, map[string]string{"vhci_hcd.0/nports": "16\n", "vhci_hcd.0/status": statusText(0, 8)})
	root := tree(t, map[string]string{"x/y": ""})
	err := os.Symlink(filepath.Join(outside, "devices/platform/vhci_hcd.0"), filepath.Join(root, "devices/platform/vhci_hcd.0"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := (vhci.Sysfs{Root: root}).Open(0); err == nil {
		d.Close()
		t.Error("opened through a link out of the tree")
	}
}

func TestOpenDoesNotWaitForAPipe(t *testing.T) {
	root := tree(t, map[string]string{"vhci_hcd.0/status": statusText(0, 8)})
	if err := unix.Mkfifo(filepath.Join(root, "devices/platform/vhci_hcd.0/nports"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := (vhci.Sysfs{Root: root}).Open(0); err == nil {
		d.Close()
		t.Error("opened a pipe")
	}
}

// The directory is held, not its name: see Driver.
func TestDriverOfADeletedControllerReachesNoOther(t *testing.T) {
	root := tree(t, map[string]string{"vhci_hcd.0/nports": "16\n", "vhci_hcd.0/status": statusText(0, 8), "vhci_hcd.0/detach": ""})
	d := open(t, vhci.Sysfs{Root: root}, 0)
	dir := filepath.Join(root, "devices/platform/vhci_hcd.0")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(tree(t, map[string]string{
		"vhci_hcd.0/nports": "16\n", "vhci_hcd.0/status": statusText(0, 8), "vhci_hcd.0/detach": "",
	}), "devices/platform/vhci_hcd.0"))); err != nil {
		t.Fatal(err)
	}

	if ports, err := d.Ports(0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ports of the other: %v, %v", ports, err)
	}
	if err := d.Detach(0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("detach on the other: %v", err)
	}
}

func TestCallsAfterClose(t *testing.T) {
	kernel := vhcitest.New(t, 1, 2)
	d := open(t, vhci.Sysfs{Root: kernel.Sysfs().Root}, 0)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := d.Ports(0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("ports: %v", err)
	}
	if err := d.Detach(0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("detach: %v", err)
	}
	if _, err := d.Device(0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("device: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add("16\n", statusText(0, 8), statusText(1, 8))
	f.Add("32\n", statusText(0, 8), statusText(1, 8))
	f.Add("3840\n", statusText(0, 15), "")
	f.Add("4294967298\n", statusText(0, 1), statusText(1, 1))
	f.Fuzz(func(t *testing.T, nports, status, status1 string) {
		d, err := vhci.Sysfs{Root: tree(t, map[string]string{
			"vhci_hcd.0/nports": nports, "vhci_hcd.0/status": status, "vhci_hcd.0/status.1": status1,
		})}.Open(0)
		if err != nil {
			return
		}
		defer d.Close()
		ports, err := d.AllPorts()
		if err != nil {
			return
		}
		for i, p := range ports {
			if p.Number != i {
				t.Fatalf("port %d is %+v", i, p)
			}
		}
		if text := strconv.Itoa(len(ports)); text != strings.TrimLeft(strings.TrimSuffix(nports, "\n"), "0") {
			t.Fatalf("nports is %q for %d ports", nports, len(ports))
		}
	})
}
