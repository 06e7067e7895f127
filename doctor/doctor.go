//go:build linux

// Package doctor tells what of usbns works on a machine, what a container sees of
// others' devices, why, and what to do about it.
//
// Of a [Host] it tries things, and compares no versions: distributions carry
// features to old kernels and build them out of new ones, and a machine may forbid
// what its kernel can. What it tries changes nothing. Where trying would, it reads
// what the kernel says of itself.
//
// A [Container] is judged from outside, by what the kernel says of its first
// program: namespaces, capabilities, mounts, the programs on its cgroup. Nothing
// of the container's own is asked, since whoever lives there may answer what he
// likes. [Container.Prove] goes inside and tries what package escape knows.
//
// # What it is not
//
// It repairs nothing. What it does not know to be a hole, it does not find.
package doctor

import (
	"context"
	"path/filepath"
)

// A State says whether something works.
type State string

// The states.
const (
	OK     State = "ok"
	Partly State = "partly"
	No     State = "no"
)

// A Check is what was found of one thing.
type Check struct {
	Name  string `json:"check"`
	State State  `json:"state"`
	For   string `json:"for"` // what needs it
	Found string `json:"found"`
	Mend  string `json:"mend,omitempty"` // empty where State is OK
}

// A Host is what is looked at.
type Host struct {
	// Root has the machine's proc, sys and dev. Default: /
	Root string
	// Kernel is tried out. Default: this machine's.
	Kernel Kernel
	// RunDir is the daemon's.
	RunDir string
	// Answers asks the daemon whether it is there.
	Answers func(context.Context) error
}

// A Kernel is what can be tried. Errors tell why something does not work.
type Kernel interface {
	// Capable reports whether this process has a capability of capability(7).
	Capable(capability int) bool
	// UserNamespace makes a user namespace and leaves it.
	UserNamespace() error
	// TakeFile takes a file from a process, pidfd_getfd(2).
	TakeFile() error
	// OpenThread opens a thread, pidfd_open(2) with PIDFD_THREAD.
	OpenThread() error
	// OpenTree opens a mount as a thing to be moved, open_tree(2).
	OpenTree() error
	// DeviceProgram loads a program that decides on devices for a cgroup.
	DeviceProgram() error
	// Guarded reports whether a guard stands on a cgroup, see package guard.
	Guarded(cgroup string) (bool, error)
	// Owner returns the number of the user namespace that owns another namespace,
	// ioctl_ns(2).
	Owner(namespace string) (uint64, error)
}

// Examine makes all checks, in an order in which one reads them.
func (h Host) Examine(ctx context.Context) []Check {
	if h.Kernel == nil {
		h.Kernel = machine{}
	}
	return examine(ctx, []check{
		{"run directory", "every command", h.daemon},
		{"privileges", "control files, containers", h.privileges},
		{"fuse", "control files", h.fuse},
		{"taking sockets", "control files", h.takingSockets},
		{"threads", "control files", h.threads},
		{"vhci_hcd", "driver kernel", h.vhci},
		{"keyboards", "driver kernel", h.keyboards},
		{"drivers", "driver kernel", h.drivers},
		{"cgroups", "containers", h.cgroups},
		{"device programs", "containers", h.devicePrograms},
		{"mounts", "containers", h.mounts},
		{"user namespaces", "containers", h.userNamespaces},
	})
}

// A check is how one thing is found out.
type check struct {
	name, need string
	examine    func(context.Context) (state State, found, mend string)
}

func examine(ctx context.Context, all []check) []Check {
	var checks []Check
	for _, c := range all {
		state, found, mend := c.examine(ctx)
		checks = append(checks, Check{Name: c.name, State: state, For: c.need, Found: printable(found), Mend: mend})
	}
	return checks
}

func (h Host) path(name string) string {
	if h.Root == "" {
		return filepath.Join("/", name)
	}
	return filepath.Join(h.Root, name)
}
