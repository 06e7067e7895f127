//go:build guest

//vmexec:modules usb-storage sd_mod ext4 crc32c_generic

package emulate_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// A file system is made on the disk, filled, and found whole after the kernel
// has forgotten all it knew of it.
func TestGuestDisk(t *testing.T) {
	t.Run("of memory at high speed", func(t *testing.T) {
		useDisk(t, attach(t, "disk", emulate.Options{Speed: usb.SpeedHigh}))
	})
	t.Run("of a file at super speed", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 64<<20); err != nil {
			t.Fatal(err)
		}
		useDisk(t, attach(t, "disk", emulate.Options{Speed: usb.SpeedSuper, File: file}))
	})
}

func useDisk(t *testing.T, g *guestDevice) {
	node := g.waitNode(t, "*:*/host*/target*/*:*:*:*/block/sd*", "/dev")
	if got := readFile("/sys/block/"+filepath.Base(node), "size"); got != "131072" {
		t.Errorf("%s has %s blocks, want 131072", node, got)
	}
	run(t, "mkfs.ext4", "-q", "-F", node)
	dir := t.TempDir()
	files := make(map[string][]byte)
	for i := range 4 {
		b := make([]byte, 256<<10+i*777)
		rand.NewChaCha8([32]byte{byte(i)}).Read(b)
		files[fmt.Sprintf("file%d", i)] = b
	}
	mount(t, node, dir, 0)
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Error(err)
		}
	}
	unmount(t, dir)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.ext4", "-f", "-n", node)
	mount(t, node, dir, unix.MS_RDONLY)
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s reads otherwise than it was written: %v", name, err)
		}
	}
	unmount(t, dir)
}

func mount(t *testing.T, node, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(node, dir, "ext4", flags, ""); err != nil {
		t.Fatalf("mount %s: %v", node, err)
	}
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatalf("unmount: %v", err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}
