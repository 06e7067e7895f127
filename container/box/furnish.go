//go:build linux

package box

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/view"
)

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mounts are the box's own, in this order.
var mounts = []struct {
	at, fstype string
	flags      uintptr
	data       string
	optional   bool
}{
	{at: "/proc", fstype: "proc", flags: quiet},
	{at: "/sys", fstype: "sysfs", flags: quiet | unix.MS_RDONLY},
	{at: "/sys/fs/cgroup", fstype: "cgroup2", flags: quiet | unix.MS_RDONLY},
	{at: "/dev", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=755,size=4m"},
	{at: "/dev/pts", fstype: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
	{at: "/dev/shm", fstype: "tmpfs", flags: quiet, data: "mode=1777,size=64m"},
	{at: "/dev/mqueue", fstype: "mqueue", flags: quiet, optional: true},
	{at: "/run", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=755,size=64m"},
}

// readOnly is what root could harm the machine by.
var readOnly = []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/fs"}

// furnish makes everything of the box that is not its command.
func furnish(o order) error {
	// Nothing spreads to the machine. To the command it does: see become.
	for _, how := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|how, ""); err != nil {
			return fmt.Errorf("keep mounts from spreading: %w", err)
		}
	}
	if err := unmountOld(); err != nil {
		return err
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.at, "/dev/") {
			if err := os.Mkdir(m.at, 0o755); err != nil {
				return err
			}
		}
		err := unix.Mount("usbns", m.at, m.fstype, m.flags, m.data)
		if err != nil && !(m.optional && errors.Is(err, unix.ENODEV)) {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.at, err)
		}
	}
	if err := os.Mkdir("/run/vhci_hcd", 0o700); err != nil { // the stock tools' records
		return err
	}
	if err := makeNodes(o.UserNS); err != nil {
		return err
	}
	for _, dir := range o.Hidden {
		err := unix.Mount("usbns", dir, "tmpfs", quiet, "mode=755,size=64k")
		if err != nil && !errors.Is(err, unix.ENOENT) { // it was below what is covered
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	if err := view.Cover(nil, "/"); err != nil {
		return err
	}
	for _, at := range readOnly {
		if err := makeReadOnly(at); err != nil {
			return fmt.Errorf("make %s read only: %w", at, err)
		}
	}
	return nil
}

// unmountOld takes off what the machine has where the box has its own: what is
// mounted there would still be named in the table of mounts.
func unmountOld() error {
	for _, at := range []string{"/proc", "/sys", "/dev", "/run"} {
		for {
			err := unix.Unmount(at, unix.MNT_DETACH)
			if errors.Is(err, unix.EINVAL) { // nothing is mounted there
				break
			}
			if err != nil {
				return fmt.Errorf("unmount the machine's %s: %w", at, err)
			}
		}
	}
	return nil
}

func makeReadOnly(at string) error {
	err := unix.Mount(at, at, "", unix.MS_BIND, "")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|quiet, "")
}

// makeNodes makes the nodes that every container has.
func makeNodes(owner uint32) error {
	unix.Umask(0)
	defer unix.Umask(0o022)
	for name, number := range map[string][2]uint32{
		"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
	} {
		if err := unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(number[0], number[1]))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	if owner != 0 {
		return os.Chown("/run/vhci_hcd", int(owner), int(owner))
	}
	return nil
}
