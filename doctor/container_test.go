//go:build linux

package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/view"
	"github.com/usbns/usbns/control"
)

// A box is a container where all is well: process 7, in front of its program 9.
type box struct {
	*patient
	Container
	mounts []string // lines of mountinfo
}

func newBox(t *testing.T) *box {
	b := &box{patient: &patient{t: t, fake: &fake{fails: map[string]error{}}}}
	b.patient.Root = t.TempDir()
	b.patient.Kernel, b.patient.RunDir = b.fake, filepath.Join(b.patient.Root, "run")
	owner := os.Getuid()
	if owner == 0 {
		owner = 100000
	}
	b.Container = Container{
		Host: b.patient.Host, Container: control.Container{PID: 7, Root: "/", RootUID: 200000, Keeper: true},
		Controller: control.Controller{Name: "alice", UID: uint32(owner)},
		Ports:      []control.Port{{Number: 0, Path: "/device"}, {Number: 1}},
	}
	b.fake.owner, b.guarded = 4026532001, "/sys/fs/cgroup/usbns/run-1"
	b.write("proc/7/task/7/children", "12 13 \n")
	b.write("proc/7/task/8/children", "9 \n")
	for _, kind := range []string{"user", "mnt", "pid", "cgroup"} {
		b.link("proc/self/ns/"+kind, kind+":[4026531001]")
		b.link("proc/7/ns/"+kind, kind+":[4026532001]")
		b.link("proc/9/ns/"+kind, kind+":[4026533001]")
	}
	b.capabilities("000001ffffffffff")
	b.write("proc/9/uid_map", fmt.Sprintf("0 200000 1\n1 %d 1\n", owner))
	b.write("proc/9/cgroup", "1:name=systemd:/x\n0::/usbns/run-1\n")
	b.write("device/busnum", "1\n")
	b.write("device/devnum", "2\n")
	const node = "proc/9/root/dev/bus/usb/001/002"
	b.write(node, "")
	if err := os.Chown(filepath.Join(b.patient.Root, node), owner, -1); err != nil {
		t.Fatal(err)
	}
	b.write("sys/bus/usb/devices/x", "")
	b.write("sys/class/x", "")
	b.write("sys/devices/platform/vhci_hcd.0/usbip_debug", "")
	b.write("sys/devices/platform/vhci_hcd.1/x", "")
	b.write("proc/bus/x", "")
	b.write("run/sys/x", "")
	b.mount("/", "ext4", "/dev/sda")
	b.mount("/proc", "proc", "proc")
	b.mount("/sys", "sysfs", "sysfs")
	b.mount("/dev", "tmpfs", "tmpfs")
	for _, name := range view.Covered() {
		b.mount(name, "tmpfs", "usbns")
	}
	b.mount("/sys/devices/platform/vhci_hcd.0/usbip_debug", "tmpfs", "usbns")
	b.mount("/sys/devices/platform/vhci_hcd.1", "tmpfs", "usbns")
	for _, name := range []string{"attach", "detach", "status", "nports"} {
		b.mount("/sys/devices/platform/vhci_hcd.0/"+name, "fuse.usbns", "usbns")
	}
	return b
}

// mount mounts something on top of what is mounted there.
func (b *box) mount(point, fstype, source string) {
	b.t.Helper()
	parent, length := 0, -1
	for i, line := range b.mounts {
		at := strings.Fields(line)[4]
		if (at == point || at == "/" || strings.HasPrefix(point, at+"/")) && len(at) >= length {
			parent, length = i+1, len(at)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(b.Container.RunDir, "sys"), &st); err != nil {
		b.t.Fatal(err)
	}
	b.mounts = append(b.mounts, fmt.Sprintf("%d %d %d:%d / %s rw - %s %s rw", len(b.mounts)+1, parent,
		unix.Major(st.Dev), unix.Minor(st.Dev), point, fstype, source))
}

// unmount takes away all that is mounted on a place, as if it had never been.
func (b *box) unmount(point string) {
	b.mounts = slices.DeleteFunc(b.mounts, func(line string) bool { return strings.Fields(line)[4] == point })
}

func (b *box) examine() []Check {
	b.write("proc/9/mountinfo", strings.Join(b.mounts, "\n")+"\n")
	return b.Container.Examine(b.t.Context())
}

func TestPrivateContainer(t *testing.T) {
	checks := newBox(t).examine()
	for _, c := range checks {
		if c.State != OK || c.Mend != "" {
			t.Errorf("%+v", c)
		}
	}
	if len(checks) != 9 {
		t.Errorf("%d checks", len(checks))
	}
}

func TestEachLeakIsFound(t *testing.T) {
	// A container without a user namespace.
	plain := func(b *box) {
		b.link("proc/9/ns/user", "user:[4026531001]")
		b.capabilities("00000000a80425fb")
		b.write("proc/9/uid_map", "0 0 4294967295\n")
	}
	const controllerDir = "/sys/devices/platform/vhci_hcd.0/"
	for _, tt := range []struct {
		leak        func(*box)
		check       string
		state       State
		found, mend string
	}{
		{func(b *box) { b.remove("proc/7") }, "program", No, "process 7 is gone", "again"},
		{func(b *box) { b.remove("proc/9/ns") }, "program", No, "proc/9/ns/user", "again"},
		{func(b *box) { b.remove("proc/7/task/8"); b.write("proc/7/task/7/children", "\n") }, "program", No, "no program runs", "again"},
		{plain, "user namespace", Partly, "root of this machine", "--userns"},
		{plain, "capabilities", OK, "none of", ""},
		{func(b *box) { b.write("proc/9/uid_map", "0 0 65536\n") }, "user namespace", Partly, "root of this machine is one", "map users"},
		{func(b *box) { plain(b); b.capabilities("00000000a82425fb") }, "capabilities", No, "CAP_SYS_ADMIN", "lxc.cap.drop = sys_admin"},
		{func(b *box) { plain(b); b.capabilities("00000004a80525fb") }, "capabilities", No, "CAP_SYS_MODULE loads modules; CAP_SYSLOG", "sys_module syslog"},
		{func(b *box) { b.write("proc/9/status", "Name:\tx\n") }, "capabilities", No, "does not tell", "again"},
		{func(b *box) { b.link("proc/9/ns/mnt", "mnt:[4026532001]") }, "capabilities", Partly, "mounted inside its user namespace", "sys_admin"},
		{func(b *box) {
			b.link("proc/9/ns/mnt", "mnt:[4026532001]")
			b.capabilities("00000000a80425fb")
		}, "capabilities", OK, "no CAP_SYS_ADMIN", ""},
		{func(b *box) { b.link("proc/9/ns/mnt", "mnt:[4026531001]") }, "covers", No, "mounts of this machine", "mount namespace"},
		{func(b *box) { b.unmount("/sys/bus") }, "covers", No, "not covered: /sys/bus", "usbns config"},
		{func(b *box) { b.mount("/sys", "sysfs", "sysfs") }, "covers", No, "/sys/bus, ", "capabilities"},
		{func(b *box) { b.mount("/sys/bus", "sysfs", "sysfs") }, "covers", No, "not covered: /sys/bus", "capabilities"},
		{func(b *box) {
			b.mount("/sys/bus", "tmpfs", "of runc")
			b.mount("/proc/bus", "devtmpfs", "udev")
			b.mounts[len(b.mounts)-1] = strings.Replace(b.mounts[len(b.mounts)-1], " / ", " /null ", 1)
		}, "covers", OK, "covered", ""},
		{func(b *box) { b.unmount(controllerDir + "usbip_debug") }, "covers", No, "vhci_hcd.0/usbip_debug", "usbns run"},
		{func(b *box) { b.unmount("/sys/devices/platform/vhci_hcd.1") }, "covers", No, "not covered: /sys/devices/platform/vhci_hcd.1", "usbns run"},
		{func(b *box) { b.mount("/dev", "devtmpfs", "udev") }, "covers", No, "not covered: /dev", "usbns config"},
		{func(b *box) { b.write("proc/9/cgroup", "4:devices:/x\n") }, "cgroup", No, "no cgroup of version 2", "unified"},
		{func(b *box) { b.write("proc/9/cgroup", "4:devices:/x\n") }, "guard", No, "there is none", "see cgroup"},
		{func(b *box) { b.write("proc/9/cgroup", "0::/\n") }, "cgroup", No, "of this machine", "of its own"},
		{func(b *box) {
			plain(b)
			b.link("proc/9/ns/cgroup", "cgroup:[4026531001]")
			b.mount("/sys/fs/cgroup", "cgroup2", "cgroup")
		}, "cgroup", No, "can leave it by /sys/fs/cgroup", "read only"},
		{func(b *box) { b.write("proc/9/cgroup", "0::/usbns/run-1/init.scope\n") }, "guard", OK, "usbns/run-1 refuses", ""},
		{func(b *box) { b.guarded = "" }, "guard", No, "/sys/fs/cgroup/usbns/run-1", "attach"},
		{func(b *box) { b.fails["guard"] = syscall.EPERM }, "guard", No, "not permitted", "root"},
		{func(b *box) { b.owner = 4026531001 }, "events", No, "of all", "network namespace"},
		{func(b *box) { b.fails["owner"] = syscall.EPERM }, "events", No, "not permitted", "root"},
		{func(b *box) { b.link("proc/9/ns/pid", "pid:[4026531001]") }, "processes", No, "of all", "namespace"},
		{func(b *box) { b.remove("run/sys") }, "control files", No, "run/sys", "daemon as root"},
		{func(b *box) { b.unmount(controllerDir + "detach") }, "control files", No, "detach is not", "daemon"},
		{func(b *box) {
			b.unmount(controllerDir + "attach")
			b.mount(controllerDir+"attach", "fuse.usbns", "usbns")
			b.mounts[len(b.mounts)-1] = regexp.MustCompile(` \d+:\d+ `).ReplaceAllString(b.mounts[len(b.mounts)-1], " 0:9999 ")
		}, "control files", No, "attach is of a daemon that is gone", "daemon"},
		{func(b *box) { b.Controller.UID = 5 }, "nodes", No, "user 5, is nobody inside", "--owner 200000:200000"},
		{func(b *box) { b.Controller.UID = 200000 }, "nodes", Partly, "belongs to user", "attach"},
		{func(b *box) { b.remove("proc/9/root/dev/bus") }, "nodes", Partly, "port 0", "attach"},
		{func(b *box) { b.mount("/dev/bus", "fuse", "mine") }, "nodes", Partly, "not on a tmpfs", "attach"},
	} {
		b := newBox(t)
		tt.leak(b)
		checks := b.examine()
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == tt.check })
		if i < 0 {
			t.Errorf("no check %s in %+v", tt.check, checks)
			continue
		}
		c := checks[i]
		if c.State != tt.state || !strings.Contains(c.Found, tt.found) || !strings.Contains(c.Mend, tt.mend) || c.For == "" {
			t.Errorf("%+v, want %s, %q and %q", c, tt.state, tt.found, tt.mend)
		}
	}
}

func (b *box) link(name, target string) {
	b.t.Helper()
	path := filepath.Join(b.patient.Root, name)
	_ = os.Remove(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) capabilities(set string) {
	b.write("proc/9/status", "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\tffffffffffffffff\nCapBnd:\t"+set+"\n")
}
