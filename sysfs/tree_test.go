//go:build linux

package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestTreeLooksLikeSysfs(t *testing.T) {
	f, table := start(t, 3, nil)
	if got, want := names(t, filepath.Join(f.dir, "devices/platform")), []string{"vhci_hcd.0", "vhci_hcd.1", "vhci_hcd.2"}; !slices.Equal(got, want) {
		t.Errorf("controllers are %v, want %v", got, want)
	}
	dir := f.Dir(table.Controller(1))
	if got, want := names(t, dir), []string{"attach", "detach", "nports", "status"}; !slices.Equal(got, want) {
		t.Errorf("files are %v, want %v", got, want)
	}
	for name, mode := range map[string]fs.FileMode{"attach": 0o200, "detach": 0o200, "nports": 0o444, "status": 0o444} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		if info.Mode() != mode || info.Size() != 4096 || owner.Uid != 7 || owner.Gid != 8 {
			t.Errorf("%s: mode %v, size %d, owner %d:%d", name, info.Mode(), info.Size(), owner.Uid, owner.Gid)
		}
	}
	if got := read(t, filepath.Join(dir, "nports")); got != "4\n" {
		t.Errorf("nports is %q", got)
	}
	if got, want := read(t, filepath.Join(dir, "status")), string(table.Controller(1).AppendStatus(nil)); got != want {
		t.Errorf("status\n%swant\n%s", got, want)
	}
	for _, absent := range []string{"x", "c/x", "devices/platform/vhci_hcd.3", "devices/platform/vhci_hcd.01", "devices/platform/vhci_hcd.1/status.1"} {
		if _, err := os.Stat(filepath.Join(f.dir, absent)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", absent, err)
		}
	}
	for name, flags := range map[string]int{"attach": unix.O_RDONLY, "detach": unix.O_RDWR, "status": unix.O_WRONLY} {
		_, err := unix.Open(filepath.Join(dir, name), flags, 0)
		wantErrno(t, fmt.Sprintf("open %s with flags %x", name, flags), err, unix.EACCES)
	}
	wantErrno(t, "chmod", os.Chmod(filepath.Join(dir, "attach"), 0o666), unix.EPERM)
}

// A child that outlives the daemon must not keep the mount from dying with it.
func TestChildrenDoNotGetTheConnection(t *testing.T) {
	start(t, 1, nil)
	out, err := exec.CommandContext(t.Context(), "ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil || strings.Contains(string(out), "fuse") {
		t.Errorf("a child has %v\n%s", err, out)
	}
}

// Package vhci opens a controller of the tree by its path.
func TestOpenWithVHCI(t *testing.T) {
	f, table := start(t, 2, nil)
	d, err := vhci.OpenPath(f.Dir(table.Controller(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	scanner, err := emulate.NewScanner(emulate.Options{Speed: usb.SpeedSuper})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Controller(1).Attach(t.Context(), 1, controller.Plug{Device: scanner}); err != nil {
		t.Fatal(err)
	}
	ports, err := d.AllPorts()
	if err != nil || len(ports) != 4 || ports[3].Status != vhci.StatusUsed || ports[3].BusID != "2-2" {
		t.Fatalf("ports %+v, %v", ports, err)
	}
	if err := d.Detach(3); err != nil {
		t.Error(err)
	}
	<-scanner.Gone()
	wantErrno(t, "detach of a free port", d.Detach(0), unix.EINVAL)
}

// Nothing of a nameless directory tells of other controllers, and it can only be
// found by who knows its name.
func TestNamelessDirectories(t *testing.T) {
	f, table := start(t, 2, nil)
	dir := f.NamelessDir(table.Controller(1))
	if got := names(t, filepath.Join(f.dir, "c")); got != nil {
		t.Errorf("c lists %v", got)
	}
	if got, want := names(t, dir), []string{"attach", "detach", "nports", "status", "status.1"}; !slices.Equal(got, want) {
		t.Errorf("files are %v, want %v", got, want)
	}
	base := filepath.Base(dir)
	if len(base) != 32 || base == filepath.Base(f.NamelessDir(table.Controller(0))) {
		t.Errorf("name %q", base)
	}
	for _, bad := range []string{base[1:], strings.ToUpper(base), "0" + base[1:], "1" + base[1:], strings.Repeat("0", 32)} {
		if _, err := os.Stat(filepath.Join(f.dir, "c", bad)); bad != base && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	inodes := map[uint64]bool{}
	for _, c := range table.All() {
		for _, name := range []string{"attach", "status", "status.1"} {
			info, err := os.Stat(filepath.Join(f.NamelessDir(c), name))
			if err != nil {
				t.Fatal(err)
			}
			inodes[info.Sys().(*syscall.Stat_t).Ino] = true
		}
	}
	if len(inodes) != 6 {
		t.Errorf("inodes %v of 6 files", inodes)
	}
	for ino := range inodes {
		if inodes[ino+1] {
			t.Errorf("inode %d has a neighbour", ino)
		}
	}
}

// A device that no kernel has would make every command of the stock tool fail.
func TestStatusForTheStockTool(t *testing.T) {
	f, table := start(t, 1, nil)
	scanner, err := emulate.NewScanner(emulate.Options{Speed: usb.SpeedHigh})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Controller(0).Attach(t.Context(), 0, controller.Plug{Device: scanner}); err != nil {
		t.Fatal(err)
	}
	const header = "hub port sta spd dev      sockfd local_busid\n"
	dir := f.NamelessDir(table.Controller(0))
	if got, want := read(t, dir+"/status"), header+
		"hs  0000 005 000 00000000 000000 0-0\n"+
		"hs  0001 004 000 00000000 000000 0-0\n"+
		"ss  0002 004 000 00000000 000000 0-0\n"+
		"ss  0003 004 000 00000000 000000 0-0\n"; got != want {
		t.Errorf("status\n%swant\n%s", got, want)
	}
	if got, want := read(t, dir+"/status.1"), header+"ss  0003 004 000 00000000 000000 0-0\n"; got != want {
		t.Errorf("status.1\n%swant\n%s", got, want)
	}
	if got := read(t, f.Dir(table.Controller(0))+"/status"); !strings.Contains(got, "hs  0000 006 003 00000000 000000 1-1\n") {
		t.Errorf("status for the host\n%s", got)
	}
}

// What was open or bound is not the next controller of that index.
func TestDeletedController(t *testing.T) {
	f, table := start(t, 1, nil)
	old := f.NamelessDir(table.Controller(0))
	bound := filepath.Join(must.TempDir(t), "status")
	if err := os.WriteFile(bound, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(old+"/status", bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(bound, unix.MNT_DETACH)
	status, err := os.Open(f.Dir(table.Controller(0)) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	detach, err := unix.Open(old+"/detach", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(detach)
	read(t, bound)

	if err := table.Delete(table.Controller(0)); err != nil {
		t.Fatal(err)
	}
	made, err := table.Create(controller.Config{Driver: &controller.User{}, Policy: policy.Open()}, 1)
	if err != nil || made[0].Index() != 0 {
		t.Fatal(made, err)
	}
	read(t, f.Dir(made[0])+"/status")
	buf := make([]byte, 10)
	_, err = status.ReadAt(buf, 0)
	wantErrno(t, "read of an old file", err, unix.ENODEV)
	_, err = unix.Write(detach, []byte("0"))
	wantErrno(t, "write of an old file", err, unix.ENODEV)
	_, err = os.Open(bound)
	wantErrno(t, "open of an old bind", err, unix.ENODEV)
	_, err = os.Open(old + "/status")
	wantErrno(t, "open by the old name", err, unix.ENOENT)
	if f.NamelessDir(made[0]) == old {
		t.Error("the new controller has the old name")
	}
}

// A program that reads in small pieces sees one state.
func TestReadInPieces(t *testing.T) {
	f, table := start(t, 1, nil)
	want := read(t, f.Dir(table.Controller(0))+"/status")
	file, err := os.Open(f.Dir(table.Controller(0)) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var got strings.Builder
	for piece := make([]byte, 7); ; {
		n, err := file.Read(piece)
		got.Write(piece[:n])
		if got.Len() == 7 {
			scanner, err := emulate.NewScanner(emulate.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := table.Controller(0).Attach(t.Context(), 1, controller.Plug{Device: scanner}); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	if got.String() != want {
		t.Errorf("read\n%swant\n%s", got.String(), want)
	}
}

// One tenant cannot use up the daemon's descriptors.
func TestOpenFilesAreBounded(t *testing.T) {
	f, table := start(t, 2, nil)
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range maxOpen {
		fd, err := unix.Open(f.Dir(table.Controller(0))+"/attach", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	_, err := unix.Open(f.Dir(table.Controller(0))+"/attach", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	wantErrno(t, "one more", err, unix.ENFILE)
	read(t, f.Dir(table.Controller(1))+"/status")
}

func TestManyControllers(t *testing.T) {
	const count = 10_000
	f, table := start(t, count, nil)
	if got := len(names(t, filepath.Join(f.dir, "devices/platform"))); got != count {
		t.Errorf("%d controllers are listed", got)
	}
	last := table.Controller(count - 1)
	for _, dir := range []string{f.Dir(last), f.NamelessDir(last)} {
		if got := read(t, dir+"/nports"); got != "4\n" {
			t.Errorf("nports of %s is %q", dir, got)
		}
	}
}

// go test -bench Status ./sysfs: the time does not depend on the count.
func BenchmarkStatus(b *testing.B) {
	for _, count := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("controllers=%d", count), func(b *testing.B) {
			f, table := start(b, count, nil)
			path := f.Dir(table.Controller(count/2)) + "/status"
			buf := make([]byte, fileSize)
			for b.Loop() {
				fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := unix.Read(fd, buf); n == 0 || err != nil {
					b.Fatal(n, err)
				}
				unix.Close(fd)
			}
		})
	}
}

func TestNodesHaveNumbersThatTellNothing(t *testing.T) {
	m, err := newMint()
	if err != nil {
		t.Fatal(err)
	}
	if m.id(nodeRoot) != 1 || m.ofID(1) != nodeRoot {
		t.Error("the root is not FUSE_ROOT_ID")
	}
	high := 0
	for n := nodeDevices; n < 1<<20; n += 1 << 8 {
		id := m.id(n)
		if m.ofID(id) != n {
			t.Fatalf("node %#x becomes %#x", n, m.ofID(id))
		}
		if id>>48 != 0 {
			high++
		}
	}
	if high < 4000 {
		t.Errorf("only %d of 4096 numbers are large", high)
	}
}
