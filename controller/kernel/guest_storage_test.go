//go:build guest

//vmexec:modules usbip-host xhci-pci usb-storage sd_mod ext4 crc32c_generic
//vmexec:qemu -device qemu-xhci -drive if=none,id=stick,format=raw,file=null-co://,file.size=67108864,file.read-zeroes=on,snapshot=on -device usb-storage,drive=stick

package kernel_test

import (
	"bufio"
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func vanishes(t testing.TB, path string) {
	t.Helper()
	must.Become(t, "the end of "+path, func() bool {
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist)
	})
}

// exportStick gives QEMU's disk to the stock server and returns its busid.
func exportStick(t *testing.T) (busid string) {
	t.Helper()
	must.Become(t, "QEMU's disk", func() bool {
		products, _ := filepath.Glob("/sys/bus/usb/devices/[0-9]*-*/product")
		for _, file := range products {
			if text, _ := os.ReadFile(file); strings.HasPrefix(string(text), "QEMU USB HARDDRIVE") {
				busid = filepath.Base(filepath.Dir(file))
			}
		}
		return busid != ""
	})
	run(t, "usbip", "bind", "-b", busid)
	t.Cleanup(func() { run(t, "usbip", "unbind", "-b", busid) })
	usbipd := exec.Command("usbipd", "-4")
	stderr, err := usbipd.StderrPipe()
	must.OK(t, err)
	must.OK(t, usbipd.Start())
	t.Cleanup(func() { usbipd.Process.Kill(); usbipd.Wait() })
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if strings.Contains(lines.Text(), "listening on") {
			return busid
		}
	}
	t.Fatal("usbipd does not listen")
	return ""
}

// A disk of the stock server, which nobody wrote for this, keeps what is written
// to it, and what is written the one way is there the other way.
func TestGuestStorage(t *testing.T) {
	must.NotLeak(t)
	busid := exportStick(t)
	d := newGuestDriver(t)
	content := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	for name, driver := range map[string]controller.Driver{"checked": d, "direct": d.Direct()} {
		var p controller.Plug
		must.Become(t, "an import", func() bool { // the server may still be at the last one
			conn, err := usbip.Dial(t.Context(), "127.0.0.1")
			must.OK(t, err)
			info, err := usbip.RequestImport(t.Context(), conn, busid)
			if err != nil {
				conn.Close()
				return false
			}
			p = controller.Plug{Conn: conn, Speed: info.Speed, DevID: info.DevID()}
			return true
		})
		if !p.Speed.Super() {
			t.Errorf("QEMU's disk has %v speed", p.Speed)
		}
		judged := ""
		p.Judge = func(d *usb.Descriptors) error { judged = d.Product(); return nil }
		a, err := driver.Attach(t.Context(), p)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if judged != "QEMU USB HARDDRIVE" || a.Descriptors().Product() != judged {
			t.Errorf("%s: judged %q, attached %q", name, judged, a.Descriptors().Product())
		}
		useDisk(t, a.Path(), content)
		a.Detach()
		if _, err := os.Lstat(a.Path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: after the detach: %v", name, err)
		}
	}
}

func useDisk(t *testing.T, path string, content []byte) {
	t.Helper()
	var node string
	must.Become(t, "a disk", func() bool {
		found, _ := filepath.Glob(filepath.Join(path, "*:*/host*/target*/*:*:*:*/block/sd*"))
		if len(found) == 1 {
			node = "/dev/" + filepath.Base(found[0])
		}
		_, err := os.Stat(node)
		return err == nil
	})
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	mount := func() {
		t.Helper()
		must.OK(t, unix.Mount(node, dir, "ext4", 0, ""))
	}
	run(t, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", node)
	mount()
	must.OK(t, os.WriteFile(file, content, 0o600))
	must.OK(t, unix.Unmount(dir, 0))
	must.OK(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	mount()
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file reads otherwise than it was written: %v", err)
	}
	must.OK(t, unix.Unmount(dir, 0))
}
