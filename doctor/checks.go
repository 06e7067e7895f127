//go:build linux

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/vhci"
)

const asRoot = "run it as root (sudo)"

func (h Host) daemon(ctx context.Context) (State, string, string) {
	if len(filepath.Join(h.RunDir, control.Socket)) > control.MaxSocketPath {
		return No, h.RunDir + " is too long for a socket", "choose another with --run DIR"
	}
	info, err := os.Stat(h.RunDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Partly, h.RunDir + " is not there", "start a daemon: usbns daemon"
	case err != nil:
		return No, err.Error(), "choose another with --run DIR"
	case !info.IsDir():
		return No, h.RunDir + " is no directory", "choose another with --run DIR"
	case info.Mode().Perm()&0o077 != 0:
		return No, fmt.Sprintf("%s is open to others: %v", h.RunDir, info.Mode().Perm()), "chmod 700 " + h.RunDir
	}
	if err := h.Answers(ctx); err != nil {
		return Partly, err.Error(), "start a daemon: usbns daemon"
	}
	return OK, "a daemon answers in " + h.RunDir, ""
}

func (h Host) privileges(context.Context) (State, string, string) {
	var lacking []string
	for _, c := range []struct {
		number int
		name   string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}} {
		if !h.Kernel.Capable(c.number) {
			lacking = append(lacking, c.name)
		}
	}
	if lacking != nil {
		return Partly, "no " + strings.Join(lacking, ", no ") + "; controllers of the driver user need none", asRoot
	}
	return OK, "CAP_SYS_ADMIN, CAP_SYS_PTRACE", ""
}

func (h Host) fuse(context.Context) (State, string, string) {
	path := h.path("dev/fuse")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return No, "there is no " + path, "modprobe fuse; in a container, let it have the device"
	case errors.Is(err, fs.ErrPermission):
		return No, err.Error(), asRoot + "; in a container, let it have the device"
	case err != nil:
		return No, err.Error(), "modprobe fuse"
	}
	f.Close()
	if !h.Kernel.Capable(unix.CAP_SYS_ADMIN) {
		return No, path + " may not be mounted without CAP_SYS_ADMIN", asRoot
	}
	return OK, path, ""
}

func (h Host) takingSockets(context.Context) (State, string, string) {
	scope, err := h.read("proc/sys/kernel/yama/ptrace_scope")
	if err == nil && scope == "3" {
		return No, "kernel.yama.ptrace_scope is 3, which forbids it to root as well",
			"set it to 2 or less in /etc/sysctl.d and boot again: 3 stays until then; usbns attach works meanwhile"
	}
	if err := h.Kernel.TakeFile(); err != nil {
		return No, "pidfd_getfd: " + err.Error(), "use Linux 5.6 or later, and a seccomp filter that allows it"
	}
	if !h.Kernel.Capable(unix.CAP_SYS_PTRACE) {
		return No, "no CAP_SYS_PTRACE", asRoot
	}
	return OK, "pidfd_getfd", ""
}

func (h Host) threads(context.Context) (State, string, string) {
	if err := h.Kernel.OpenThread(); err != nil {
		return Partly, "pidfd_open of a thread: " + err.Error() + "; a thread that shares no files with its process is refused",
			"a kernel with PIDFD_THREAD (Linux 6.9)"
	}
	return OK, "PIDFD_THREAD", ""
}

func (h Host) vhci(context.Context) (State, string, string) {
	d, err := vhci.Sysfs{Root: h.path("sys")}.Open(0)
	if errors.Is(err, vhci.ErrNotLoaded) {
		return No, "vhci_hcd is not loaded", "modprobe vhci-hcd; controllers of the driver user need none"
	}
	if err != nil {
		return No, err.Error(), "modprobe -r vhci-hcd; modprobe vhci-hcd"
	}
	defer d.Close()
	g := d.Geometry()
	found := fmt.Sprintf("%d controllers of %d+%d ports", g.Controllers, g.HubPorts, g.HubPorts)
	hubs, err := d.RootHubs(0)
	if err == nil {
		_, err = os.Stat(filepath.Join(hubs[vhci.HubHigh].Path(), "authorized_default"))
	}
	if err != nil {
		return No, fmt.Sprintf("%s, but devices cannot be held back until they are guarded: %v", found, err),
			"a kernel whose root hubs have authorized_default"
	}
	return OK, found, ""
}

func (h Host) keyboards(context.Context) (State, string, string) {
	host := policy.Host{Proc: h.path("proc"), Console: h.path("dev/tty0")}
	if err := host.KeyboardSafe(); err != nil {
		return Partly, "keyboards are refused: they could harm this host", strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return OK, "system requests are off, no console listens", ""
}

func (h Host) drivers(context.Context) (State, string, string) {
	release, err := h.read("proc/sys/kernel/osrelease")
	dir := h.path("lib/modules/" + release)
	if err == nil {
		err = policy.Host{Modules: dir}.ClaimsKnown()
	}
	if err != nil {
		return Partly, "which drivers claim a device by its numbers is not known", err.Error()
	}
	return OK, "claimed numbers are in " + dir, ""
}

func (h Host) cgroups(context.Context) (State, string, string) {
	controllers, err := h.read("sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return No, "no version 2 at /sys/fs/cgroup", "boot with systemd.unified_cgroup_hierarchy=1"
	}
	return OK, "version 2: " + controllers, ""
}

func (h Host) devicePrograms(context.Context) (State, string, string) {
	err := h.Kernel.DeviceProgram()
	switch {
	case errors.Is(err, unix.EPERM):
		return No, "bpf: " + err.Error(), asRoot
	case err != nil:
		return No, err.Error(), "a kernel with CONFIG_CGROUP_BPF"
	}
	return OK, "BPF_PROG_TYPE_CGROUP_DEVICE", ""
}

func (h Host) mounts(context.Context) (State, string, string) {
	if err := h.Kernel.OpenTree(); err != nil {
		return No, "open_tree: " + err.Error(), "use Linux 5.2 or later, and a seccomp filter that allows it"
	}
	return OK, "open_tree", ""
}

func (h Host) userNamespaces(context.Context) (State, string, string) {
	err := h.Kernel.UserNamespace()
	if err == nil {
		return OK, "they can be made", ""
	}
	const weak = "; a container that is root on the host can undo what hides the others"
	for _, knob := range []struct{ file, bad, mend string }{
		{"proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"},
		{"proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1, or sudo"},
		{"proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sudo, or a profile of AppArmor that allows it"},
	} {
		if value, readErr := h.read(knob.file); readErr == nil && value == knob.bad {
			return Partly, fmt.Sprintf("/%s is %s%s", knob.file, value, weak), knob.mend
		}
	}
	return Partly, "clone: " + err.Error() + weak, "a kernel with CONFIG_USER_NS, and a seccomp filter that allows it"
}

// read returns a line the kernel tells.
func (h Host) read(name string) (string, error) {
	b, err := os.ReadFile(h.path(name))
	return strings.TrimSpace(string(b)), err
}
