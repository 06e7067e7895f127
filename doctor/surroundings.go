//go:build linux

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/view"
)

func (p *subject) covers(context.Context) (State, string, string) {
	own, err := p.namespace("mnt")
	if err != nil {
		return No, err.Error(), again
	}
	if host, err := p.hostNamespace("mnt"); err != nil || own == host {
		return No, "it has the mounts of this machine, nothing is hidden", "give it a mount namespace of its own"
	}
	names := view.Covered()
	devices, _ := os.ReadDir(p.path("sys/devices/platform"))
	for _, d := range devices {
		if strings.HasPrefix(d.Name(), "vhci_hcd.") {
			names = append(names, view.CoveredOf(d.Name()))
		}
	}
	var bare []string
	covered := 0
	for _, name := range names {
		if _, err := os.Stat(p.path(name)); errors.Is(err, fs.ErrNotExist) {
			continue // this kernel does not have it
		}
		if !p.covered(name) {
			bare = append(bare, name)
			continue
		}
		covered++
	}
	if dev := p.mounts.at("/dev"); dev == nil || dev.FSType != "tmpfs" {
		bare = append(bare, "/dev")
	}
	if bare != nil {
		return No, "not covered: " + strings.Join(bare, ", "),
			"start it by usbns run, or by a runtime with what usbns config prints; if its root did this, see capabilities"
	}
	return OK, fmt.Sprintf("%d directories and files are covered, /dev is its own", covered), ""
}

// covered reports whether something lies over a directory or file that is not the
// kernel's: what view.Cover has mounted, or what a runtime has on top of that, a
// tmpfs or /dev/null.
func (p *subject) covered(name string) bool {
	m := p.mounts.at(name)
	return m != nil && m.Mountpoint == name && (m.FSType == "tmpfs" || m.Root == "/null")
}

const cgroups = "/sys/fs/cgroup"

func (p *subject) ownCgroup(context.Context) (State, string, string) {
	switch p.cgroup {
	case "":
		return No, "it is in no cgroup of version 2", "boot with systemd.unified_cgroup_hierarchy=1"
	case "/":
		return No, "it is in the cgroup of this machine", "give it a cgroup of its own"
	}
	own, err := p.namespace("cgroup")
	if err != nil {
		return No, err.Error(), again
	}
	host, err := p.hostNamespace("cgroup")
	if err != nil {
		return No, err.Error(), again
	}
	if own == host && !p.userNS {
		for _, m := range p.mounts {
			if m.FSType == "cgroup2" && writable(m) && p.mounts.at(m.Mountpoint) == m {
				return No, "root inside can leave it by " + m.Mountpoint + ", and with it the guard",
					"give it a cgroup namespace, or mount cgroups to be read only"
			}
		}
	}
	return OK, p.cgroup, ""
}

func (p *subject) guard(context.Context) (State, string, string) {
	if p.cgroup == "" || p.cgroup == "/" {
		return No, "there is none without a cgroup of its own", "see cgroup"
	}
	// It is on the cgroup in which the container began.
	for path := p.cgroup; path != "/"; path = filepath.Dir(path) {
		stands, err := p.Kernel.Guarded(filepath.Join(cgroups, path))
		switch {
		case errors.Is(err, fs.ErrPermission):
			return No, err.Error(), asRoot
		case err != nil:
			return No, err.Error(), again
		case stands:
			return OK, "one on " + filepath.Join(cgroups, path) + " refuses devices that are not its own", ""
		}
	}
	return No, "none stands on " + filepath.Join(cgroups, p.cgroup), "attach a device, which puts it back; if its root took it away, see capabilities"
}

func (p *subject) events(context.Context) (State, string, string) {
	const mend = "give it a network namespace in a user namespace of its own"
	owner, err := p.Kernel.Owner(p.path(p.proc("ns/net")))
	if err != nil {
		return No, "who owns its network namespace: " + err.Error(), asRoot
	}
	host, err := p.hostNamespace("user")
	if err != nil {
		return No, err.Error(), mend
	}
	if host == fmt.Sprintf("user:[%d]", owner) {
		return No, "its network namespace belongs to this machine's user namespace: the kernel tells it of the devices of all", mend
	}
	return OK, "the kernel tells it of no device", ""
}

func (p *subject) processes(context.Context) (State, string, string) {
	const mend = "give it a namespace of processes of its own"
	own, err := p.namespace("pid")
	if err != nil {
		return No, err.Error(), mend
	}
	host, err := p.hostNamespace("pid")
	if err != nil {
		return No, err.Error(), mend
	}
	if own == host {
		return No, "it sees the processes of all", mend
	}
	return OK, "it sees its own", ""
}

func (p *subject) controlFiles(context.Context) (State, string, string) {
	const dir = "/sys/devices/platform/vhci_hcd.0/"
	const mend = "start the daemon again, which binds its own"
	info, err := os.Stat(filepath.Join(p.RunDir, "sys"))
	if err != nil {
		return No, err.Error(), "start a daemon as root, where there is /dev/fuse"
	}
	served := info.Sys().(*syscall.Stat_t).Dev
	for _, name := range []string{"attach", "detach", "status", "nports"} {
		m := p.mounts.at(dir + name)
		switch {
		case m == nil || m.Mountpoint != dir+name || !strings.HasPrefix(m.FSType, "fuse"):
			return No, name + " is not its controller's: the stock tools do not work inside", mend
		case unix.Mkdev(uint32(m.Major), uint32(m.Minor)) != served:
			return No, name + " is of a daemon that is gone", mend
		}
	}
	return OK, "its controller's are vhci_hcd.0", ""
}

func (p *subject) nodes(context.Context) (State, string, string) {
	owner := uint64(p.Controller.UID)
	ranges, err := p.uidMap()
	if err != nil {
		return No, err.Error(), again
	}
	if !slices.ContainsFunc(ranges, func(r idRange) bool { return owner >= r.outside && owner-r.outside < r.n }) {
		return No, fmt.Sprintf("their owner, user %d, is nobody inside", owner),
			fmt.Sprintf("make the controller with --owner %d:%d", p.RootUID, p.RootUID)
	}
	devices := 0
	for _, port := range p.Ports {
		if port.Path == "" {
			continue
		}
		devices++
		if err := p.hasNode(port.Path); err != nil {
			return Partly, fmt.Sprintf("port %d: %v", port.Number, err), "attach the device again"
		}
	}
	return OK, fmt.Sprintf("they belong to user %d of this machine (devices: %d)", owner, devices), ""
}

// hasNode looks for the node of a device, whose directory is path, in the
// container's /dev.
func (p *subject) hasNode(path string) error {
	var numbers [2]int
	for i, name := range []string{"busnum", "devnum"} {
		text, err := p.read(filepath.Join(path, name))
		if err == nil {
			numbers[i], err = strconv.Atoi(text)
		}
		if err != nil {
			return fmt.Errorf("what the kernel says of the device: %w", err)
		}
	}
	node := fmt.Sprintf("dev/bus/usb/%03d/%03d", numbers[0], numbers[1])
	// Only there nobody inside can make us wait.
	if m := p.mounts.at("/" + node); m == nil || m.FSType != "tmpfs" {
		return fmt.Errorf("/%s is not on a tmpfs", node)
	}
	root, err := os.OpenRoot(p.path(p.proc("root")))
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Lstat(node)
	if err != nil {
		return err
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != p.Controller.UID {
		return fmt.Errorf("/%s belongs to user %d", node, uid)
	}
	return nil
}
