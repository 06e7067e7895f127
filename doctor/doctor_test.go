//go:build linux

package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/vhci/vhcitest"
)

// A fake kernel lacks some capabilities and fails at what is named.
type fake struct {
	lacks []int
	fails map[string]error

	guarded string // a cgroup
	owner   uint64 // of namespaces
}

func (f *fake) Capable(c int) bool   { return !slices.Contains(f.lacks, c) }
func (f *fake) UserNamespace() error { return f.fails["userns"] }
func (f *fake) TakeFile() error      { return f.fails["getfd"] }
func (f *fake) OpenThread() error    { return f.fails["thread"] }
func (f *fake) OpenTree() error      { return f.fails["tree"] }
func (f *fake) DeviceProgram() error { return f.fails["bpf"] }

func (f *fake) Guarded(path string) (bool, error) { return path == f.guarded, f.fails["guard"] }
func (f *fake) Owner(string) (uint64, error)      { return f.owner, f.fails["owner"] }

// patient is a host where all is well.
type patient struct {
	Host
	*fake
	t *testing.T
}

func newPatient(t *testing.T) *patient {
	root := t.TempDir()
	p := &patient{t: t, fake: &fake{fails: map[string]error{}}}
	p.Host = Host{Root: root, Kernel: p.fake, RunDir: filepath.Join(root, "run"), Answers: func(context.Context) error { return nil }}
	if err := os.Symlink(vhcitest.New(t, 8, 15).Sysfs().Root, filepath.Join(root, "sys")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	p.write("dev/fuse", "")
	p.write("proc/sys/kernel/yama/ptrace_scope", "1\n")
	p.write("proc/sys/kernel/sysrq", "0\n")
	p.write("proc/sys/kernel/osrelease", "6.12\n")
	p.write("lib/modules/6.12/modules.alias", "")
	p.write("lib/modules/6.12/modules.dep", "")
	p.write("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
	return p
}

func (p *patient) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *patient) remove(name string) {
	p.t.Helper()
	if err := os.RemoveAll(filepath.Join(p.Root, name)); err != nil {
		p.t.Fatal(err)
	}
}

func TestHealthyHost(t *testing.T) {
	for _, c := range newPatient(t).Examine(t.Context()) {
		if c.State != OK || c.Mend != "" {
			t.Errorf("%+v", c)
		}
		if c.Name == "" || c.For == "" || c.Found == "" {
			t.Errorf("%+v lacks something", c)
		}
	}
}

func TestEachAilmentIsFound(t *testing.T) {
	for _, tt := range []struct {
		ail         func(*patient)
		check       string
		state       State
		found, mend string
	}{
		{func(p *patient) { p.remove("run") }, "run directory", Partly, "not there", "usbns daemon"},
		{func(p *patient) { p.remove("run"); p.write("run", "") }, "run directory", No, "no directory", "--run"},
		{func(p *patient) { p.RunDir = "/" + strings.Repeat("x", 107) }, "run directory", No, "too long", "--run"},
		{func(p *patient) { os.Chmod(p.RunDir, 0o755) }, "run directory", No, "open to others", "chmod 700"},
		{func(p *patient) {
			p.Answers = func(context.Context) error { return errors.New("no daemon answers") }
		}, "run directory", Partly, "no daemon", "usbns daemon"},
		{func(p *patient) { p.lacks = []int{unix.CAP_SYS_PTRACE} }, "privileges", Partly, "no CAP_SYS_PTRACE", "root"},
		{func(p *patient) { p.remove("dev/fuse") }, "fuse", No, "dev/fuse", "modprobe fuse"},
		{func(p *patient) { p.lacks = []int{unix.CAP_SYS_ADMIN} }, "fuse", No, "CAP_SYS_ADMIN", "root"},
		{func(p *patient) { p.write("proc/sys/kernel/yama/ptrace_scope", "3\n") }, "taking sockets", No, "is 3", "sysctl.d"},
		{func(p *patient) { p.fails["getfd"] = syscall.ENOSYS }, "taking sockets", No, "not implemented", "seccomp"},
		{func(p *patient) { p.lacks = []int{unix.CAP_SYS_PTRACE} }, "taking sockets", No, "CAP_SYS_PTRACE", "root"},
		{func(p *patient) { p.fails["thread"] = syscall.EINVAL }, "threads", Partly, "invalid argument", "PIDFD_THREAD"},
		{func(p *patient) { p.remove("sys") }, "vhci_hcd", No, "not loaded", "modprobe vhci-hcd"},
		{func(p *patient) {
			for _, half := range []string{"usb1", "usb2"} {
				p.remove("sys/devices/platform/vhci_hcd.0/" + half + "/authorized_default")
			}
		}, "vhci_hcd", No, "authorized_default", "root hubs"},
		{func(p *patient) { p.write("proc/sys/kernel/sysrq", "438\n") }, "keyboards", Partly, "refused", "sysctl kernel.sysrq=0"},
		{func(p *patient) { p.write("proc/sys/kernel/osrelease", "6.13\n") }, "drivers", Partly, "not known", "run depmod"},
		{func(p *patient) { p.remove("sys/fs/cgroup/cgroup.controllers") }, "cgroups", No, "version 2", "unified_cgroup_hierarchy"},
		{func(p *patient) { p.fails["bpf"] = syscall.EPERM }, "device programs", No, "not permitted", "root"},
		{func(p *patient) { p.fails["bpf"] = errors.New("not supported") }, "device programs", No, "not supported", "CONFIG_CGROUP_BPF"},
		{func(p *patient) { p.fails["tree"] = syscall.ENOSYS }, "mounts", No, "open_tree", "seccomp"},
		{func(p *patient) { p.fails["userns"] = syscall.EINVAL }, "user namespaces", Partly, "clone", "CONFIG_USER_NS"},
		{func(p *patient) {
			p.fails["userns"] = syscall.ENOSPC
			p.write("proc/sys/user/max_user_namespaces", "0\n")
		}, "user namespaces", Partly, "max_user_namespaces is 0", "sysctl user.max_user_namespaces"},
	} {
		p := newPatient(t)
		tt.ail(p)
		checks := p.Examine(t.Context())
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == tt.check })
		c := checks[i]
		if c.State != tt.state || !strings.Contains(c.Found, tt.found) || !strings.Contains(c.Mend, tt.mend) {
			t.Errorf("%+v, want %s, %q and %q", c, tt.state, tt.found, tt.mend)
		}
	}
}

// TestThisMachine finds whatever it finds, and a mend for all that is not well.
func TestThisMachine(t *testing.T) {
	h := Host{RunDir: t.TempDir(), Answers: func(context.Context) error { return nil }}
	for _, c := range h.Examine(t.Context()) {
		t.Log(c.Name, c.State, c.Found)
		if (c.State == OK) != (c.Mend == "") || c.Found == "" {
			t.Errorf("%+v", c)
		}
	}
}

// A container names its cgroups and mounts as it likes.
func TestFoundSteersNoTerminal(t *testing.T) {
	checks := examine(t.Context(), []check{{"cgroup", privacy, func(context.Context) (State, string, string) {
		return OK, "/usbns/\x1bc", ""
	}}})
	if want := "/usbns/\ufffdc"; checks[0].Found != want {
		t.Errorf("found %q, want %q", checks[0].Found, want)
	}
}
