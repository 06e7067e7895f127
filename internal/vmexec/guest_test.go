//go:build guest

//vmexec:modules vhci-hcd

package main

import (
	"os"
	"os/exec"
	"os/user"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGuestHasStockTools(t *testing.T) {
	for _, name := range []string{
		"bash", "ip", "lsusb", "mke2fs", "mount", "nsenter", "ps", "udevadm", "unshare", "usbip", "usbipd", "/lib/systemd/systemd-udevd",
	} {
		if _, err := exec.LookPath(name); err != nil {
			t.Error(err)
		}
	}
	out, err := exec.Command("usbip", "port").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "Imported USB devices\n") {
		t.Errorf("usbip port: %v\n%s", err, out)
	}
	out, err = exec.Command("lsusb").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "1d6b:0003 Linux") {
		t.Errorf("lsusb: %v\n%s", err, out)
	}
}

func TestGuestIsRootWithUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Error("not root")
	}
	if _, err := user.Lookup("nobody"); err != nil {
		t.Error(err)
	}
	if _, err := user.LookupGroup("plugdev"); err != nil {
		t.Error(err)
	}
}

// What a test starts itself.
func TestGuestRunsUdev(t *testing.T) {
	out, err := exec.Command("sh", "-ec", `
		/lib/systemd/systemd-udevd --daemon
		udevadm trigger
		udevadm settle
		udevadm info --query=property /dev/bus/usb/001/001`).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\nDEVTYPE=usb_device\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestGuestMounts(t *testing.T) {
	for dir, magic := range map[string]int64{
		"/":              unix.OVERLAYFS_SUPER_MAGIC,
		"/proc":          unix.PROC_SUPER_MAGIC,
		"/sys":           unix.SYSFS_MAGIC,
		"/sys/fs/cgroup": unix.CGROUP2_SUPER_MAGIC,
		"/sys/fs/bpf":    unix.BPF_FS_MAGIC,
		"/dev/pts":       unix.DEVPTS_SUPER_MAGIC,
		"/dev/shm":       unix.TMPFS_MAGIC,
		"/run":           unix.TMPFS_MAGIC,
		"/var/run":       unix.TMPFS_MAGIC,
		"/tmp":           unix.TMPFS_MAGIC,
	} {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil || fs.Type != magic {
			t.Errorf("%s: file system %#x, %v; want %#x", dir, fs.Type, err, magic)
		}
	}
	if err := os.WriteFile("/usr/bin/new", nil, 0o755); err != nil {
		t.Error(err)
	}
}

// A container runtime pivots into its own root, which a root that is not a
// mount of its own would refuse.
func TestGuestPivotsRoot(t *testing.T) {
	out, err := exec.Command("unshare", "--mount", "sh", "-ec", `
		mkdir /tmp/root
		mount --rbind / /tmp/root
		cd /tmp/root
		mkdir tmp/old
		pivot_root . tmp/old
		umount -l /tmp/old`).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
