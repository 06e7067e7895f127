//go:build guest

//vmexec:modules vhci-hcd

package guard_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/guard"
	"github.com/usbns/usbns/internal/must"
)

const patience = 30 * time.Second

var rootHub = guard.Device{Major: 189, Minor: 0} // of vhci_hcd.0

// newCgroup makes a cgroup that goes with the test, and fails the test if
// anything of a guard stays behind.
func newCgroup(t *testing.T) string {
	t.Helper()
	files := must.Descriptors(t)
	dir, err := os.MkdirTemp("/sys/fs/cgroup", "guard")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
		if now := must.Descriptors(t); len(now) != len(files) {
			t.Errorf("open files before: %v, after: %v", files, now)
		}
		for start := time.Now(); guards(t) > 0; time.Sleep(time.Millisecond) {
			if time.Since(start) > patience {
				t.Fatalf("%d guards outlive their cgroup", guards(t))
			}
		}
	})
	return dir
}

// guards counts the programs of ours in the kernel.
func guards(t *testing.T) (count int) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return count
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			if info, err := p.Info(); err == nil && info.Name == "usbns_guard" {
				count++
			}
			p.Close()
		}
	}
}

func attach(t *testing.T, dir string) *guard.Guard {
	t.Helper()
	g, err := guard.Attach(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// wantOpen tries to read from a device in the cgroup.
func wantOpen(t *testing.T, dir, device string, want bool) {
	t.Helper()
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	cmd := exec.Command("head", "-c0", device)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "Operation not permitted") {
		t.Fatalf("%v: %s", err, out)
	}
	if (err == nil) != want {
		t.Errorf("%s can be opened: %v, want %v", device, err == nil, want)
	}
}

// other is a runtime's program, which refuses /dev/zero alone.
func other(t *testing.T, dir string, flags uint32) (detach func()) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupDevice, AttachType: ebpf.AttachCGroupDevice, License: "Apache-2.0",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R4, asm.R1, 4, asm.Word),
			asm.LoadMem(asm.R5, asm.R1, 8, asm.Word),
			asm.JNE.Imm(asm.R4, 1, "allow"),
			asm.JNE.Imm(asm.R5, 5, "allow"),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	o := link.RawAttachProgramOptions{Target: int(cgroup.Fd()), Program: p, Attach: ebpf.AttachCGroupDevice, Flags: flags}
	if err := link.RawAttachProgram(o); err != nil {
		t.Fatal(err)
	}
	return func() {
		cgroup, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer cgroup.Close()
		err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(cgroup.Fd()), Program: p, Attach: ebpf.AttachCGroupDevice})
		if err != nil {
			t.Fatal(err)
		}
	}
}

const usbNode = "/dev/bus/usb/001/001"

func TestGuestGuard(t *testing.T) {
	dir := newCgroup(t)
	wantOpen(t, dir, usbNode, true)
	g := attach(t, dir)
	wantOpen(t, dir, usbNode, false)
	wantOpen(t, dir, "/dev/zero", true)
	if err := g.Allow(rootHub); err != nil {
		t.Fatal(err)
	}
	wantOpen(t, dir, usbNode, true)
	wantOpen(t, dir, "/dev/bus/usb/002/001", false)
	if err := errors.Join(g.Forbid(rootHub), g.Forbid(rootHub)); err != nil {
		t.Fatal(err)
	}
	wantOpen(t, dir, usbNode, false)

	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	cmd := exec.Command("mknod", "/tmp/node", "c", "189", "0")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("a node can be made %s", out)
	}
}

// A guard outlives its process, and another finds it.
func TestGuestGuardIsFoundAgain(t *testing.T) {
	dir := newCgroup(t)
	g := attach(t, dir)
	if err := g.Allow(rootHub); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	wantOpen(t, dir, usbNode, true)
	g = attach(t, dir)
	wantOpen(t, dir, usbNode, false)
	if err := g.Allow(rootHub); err != nil {
		t.Fatal(err)
	}
	wantOpen(t, dir, usbNode, true)
	if n := guards(t); n != 1 {
		t.Errorf("%d guards stand on a cgroup", n)
	}
}

func TestGuestGuardBesideOthers(t *testing.T) {
	for name, flags := range map[string]uint32{"multi": unix.BPF_F_ALLOW_MULTI, "overridable": unix.BPF_F_ALLOW_OVERRIDE, "exclusive": 0} {
		t.Run(name, func(t *testing.T) {
			dir := newCgroup(t)
			other(t, dir, flags)
			g := attach(t, dir)
			if err := g.Allow(rootHub); err != nil {
				t.Fatal(err)
			}
			holds := func() {
				t.Helper()
				wantOpen(t, dir, usbNode, true)
				wantOpen(t, dir, "/dev/bus/usb/002/001", false)
				wantOpen(t, dir, "/dev/zero", false)
				wantOpen(t, dir, "/dev/null", true)
			}
			holds()

			// The runtime updates its rules, and knows of no guard.
			other(t, dir, flags)
			if flags != unix.BPF_F_ALLOW_MULTI {
				wantOpen(t, dir, "/dev/bus/usb/002/001", true)
			}
			if err := g.Check(); err != nil {
				t.Fatal(err)
			}
			holds()
			if err := g.Check(); err != nil {
				t.Fatal(err)
			}
			if n := guards(t); n != 1 {
				t.Errorf("%d guards stand on a cgroup", n)
			}
		})
	}
}

func TestGuestGuardIsPutBack(t *testing.T) {
	dir := newCgroup(t)
	g := attach(t, dir)
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	on, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: ebpf.AttachCGroupDevice})
	if err != nil || len(on.Programs) != 1 {
		t.Fatalf("%v, %v", on, err)
	}
	p, err := ebpf.NewProgramFromID(on.Programs[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(cgroup.Fd()), Program: p, Attach: ebpf.AttachCGroupDevice})
	p.Close()
	if err != nil {
		t.Fatal(err)
	}
	wantOpen(t, dir, usbNode, true)
	if err := g.Check(); err != nil {
		t.Fatal(err)
	}
	wantOpen(t, dir, usbNode, false)
}

func TestGuestGuardFailsClosed(t *testing.T) {
	dir := newCgroup(t)
	detach := other(t, dir, 0)
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(below)
	if g, err := guard.Attach(below); !errors.Is(err, guard.ErrOccupied) {
		t.Errorf("below an exclusive program: %v, %v", g, err)
	}
	detach()
	if g, err := guard.Attach(t.TempDir()); err == nil {
		g.Close()
		t.Error("a directory that is no cgroup is guarded")
	}
	if g, err := guard.Attach(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no cgroup: %v, %v", g, err)
	}
}
