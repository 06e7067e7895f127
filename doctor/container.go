//go:build linux

package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
)

const (
	// What the checks of a container are for.
	privacy = "privacy"
	use     = "use"

	again = "start the container again"
)

// A Container is looked at from its host, by what the kernel tells of its first
// program. What a program that enters it later may do, is not seen.
type Container struct {
	Host
	control.Container
	// Controller is the container's.
	Controller control.Controller
	// Ports are the controller's.
	Ports []control.Port
}

// A subject is a container with what many checks ask for.
type subject struct {
	*Container
	pid    int    // of its first program
	cgroup string // below the root of cgroups, "" if there is none
	userNS bool   // of its own
	mounts table
}

// Examine makes all checks, in an order in which one reads them.
func (c *Container) Examine(ctx context.Context) []Check {
	if c.Kernel == nil {
		c.Kernel = machine{}
	}
	p, err := c.find()
	if err != nil {
		return []Check{{
			Name: "program", State: No, For: use, Found: err.Error(),
			Mend: again,
		}}
	}
	return examine(ctx, []check{
		{"user namespace", privacy, p.users},
		{"capabilities", privacy, p.capabilities},
		{"covers", privacy, p.covers},
		{"cgroup", privacy, p.ownCgroup},
		{"guard", privacy, p.guard},
		{"events", privacy, p.events},
		{"processes", privacy, p.processes},
		{"control files", use, p.controlFiles},
		{"nodes", use, p.nodes},
	})
}

// find finds the container's first program.
func (c *Container) find() (*subject, error) {
	p := &subject{Container: c, pid: c.PID}
	if c.Keeper {
		var err error
		if p.pid, err = c.firstChild(); err != nil {
			return nil, err
		}
	}
	own, err := p.namespace("user")
	if err != nil {
		return nil, err
	}
	host, err := c.hostNamespace("user")
	if err != nil {
		return nil, err
	}
	p.userNS = own != host
	groups, err := p.readOf("cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(groups) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			p.cgroup = path
		}
	}
	f, err := os.Open(p.path(p.proc("mountinfo")))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.mounts, err = mountinfo.GetMountsFromReader(f, nil)
	return p, err
}

// firstChild returns the child with the lowest number of the container's process:
// the command, while it runs. Each child is that of a thread.
func (c *Container) firstChild() (int, error) {
	files, err := filepath.Glob(c.path(fmt.Sprintf("proc/%d/task/*/children", c.PID)))
	if err != nil {
		return 0, err
	}
	var children []int
	for _, file := range files {
		text, _ := os.ReadFile(file) // the thread may have ended
		for number := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(number)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", file, err)
			}
			children = append(children, child)
		}
	}
	if children == nil {
		return 0, fmt.Errorf("process %d is gone or has no child: no program runs", c.PID)
	}
	return slices.Min(children), nil
}

// proc names a file of the program's in the host's proc.
func (p *subject) proc(name string) string { return fmt.Sprintf("proc/%d/%s", p.pid, name) }

func (p *subject) readOf(name string) (string, error) { return p.read(p.proc(name)) }

// namespace returns what tells one from others, "user:[4026531837]".
func (p *subject) namespace(kind string) (string, error) {
	return os.Readlink(p.path(p.proc("ns/" + kind)))
}

func (c *Container) hostNamespace(kind string) (string, error) {
	return os.Readlink(c.path("proc/self/ns/" + kind))
}

func (p *subject) users(context.Context) (State, string, string) {
	if !p.userNS {
		return Partly, "root inside is root of this machine, and held by its capabilities alone",
			"give it a user namespace (usbns run --userns, lxc.idmap)"
	}
	ranges, err := p.uidMap()
	if err != nil {
		return No, err.Error(), again
	}
	if slices.ContainsFunc(ranges, func(r idRange) bool { return r.outside == 0 }) {
		return Partly, "root of this machine is one of its users", "map users to it that nobody else is"
	}
	return OK, fmt.Sprintf("root inside is user %d of this machine", p.RootUID), ""
}

// An idRange is a line of uid_map, user_namespaces(7).
type idRange struct{ inside, outside, n uint64 }

func (p *subject) uidMap() (ranges []idRange, err error) {
	text, err := p.readOf("uid_map")
	for line := range strings.Lines(text) {
		var r idRange
		if _, err := fmt.Sscan(line, &r.inside, &r.outside, &r.n); err != nil {
			return nil, fmt.Errorf("users of process %d: %w", p.pid, err)
		}
		ranges = append(ranges, r)
	}
	return ranges, err
}

// undoing are the capabilities by which root of the machine undoes what keeps
// devices apart, or looks past it.
var undoing = []struct {
	number int
	name   string
	what   string
}{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "unmounts what hides its neighbours and takes the guard away"},
	{unix.CAP_SYS_MODULE, "CAP_SYS_MODULE", "loads modules"},
	{unix.CAP_SYS_RAWIO, "CAP_SYS_RAWIO", "reads the kernel's memory"},
	{unix.CAP_BPF, "CAP_BPF", "loads programs into the kernel"},
	{unix.CAP_PERFMON, "CAP_PERFMON", "watches all processes"},
	{unix.CAP_SYSLOG, "CAP_SYSLOG", "reads the kernel's log of all devices"},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "opens files by their handles"},
}

func (p *subject) capabilities(context.Context) (State, string, string) {
	set, err := p.mayHave()
	if err != nil {
		return No, err.Error(), again
	}
	if p.userNS {
		return p.ownCapabilities(set)
	}
	var found, names []string
	for _, c := range undoing {
		if set&(1<<c.number) != 0 {
			found = append(found, c.name+" "+c.what)
			names = append(names, strings.ToLower(strings.TrimPrefix(c.name, "CAP_")))
		}
	}
	if found != nil {
		return No, strings.Join(found, "; "),
			"drop it (lxc.cap.drop = " + strings.Join(names, " ") + "), or give it a user namespace"
	}
	return OK, fmt.Sprintf("none of the %d that undo what hides others", len(undoing)), ""
}

// ownCapabilities judges those that are over the container's user namespace: its
// root may undo mounts that were made in its mount namespace, and not those that
// came there from one of another user namespace.
func (p *subject) ownCapabilities(set uint64) (State, string, string) {
	if set&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return OK, "no CAP_SYS_ADMIN, so nothing can be unmounted", ""
	}
	shown, err := os.Readlink(p.path(fmt.Sprintf("proc/%d/ns/mnt", p.PID)))
	if err != nil {
		return No, err.Error(), again
	}
	own, err := p.namespace("mnt")
	if err != nil {
		return No, err.Error(), again
	}
	if own != shown {
		return OK, "CAP_SYS_ADMIN of its own user namespace; what hides others was mounted outside of it", ""
	}
	return Partly, "CAP_SYS_ADMIN, and what hides others was mounted inside its user namespace: its root can unmount it and list what they have; it opens and detaches nothing of theirs",
		"drop it (lxc.cap.drop = sys_admin)"
}

// mayHave returns what the program and those that it starts may have.
func (p *subject) mayHave() (set uint64, err error) {
	status, err := p.readOf("status")
	if err != nil {
		return 0, err
	}
	found := 0
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "CapPrm" && name != "CapBnd" {
			continue
		}
		some, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("%s of process %d: %w", name, p.pid, err)
		}
		set |= some
		found++
	}
	if found != 2 {
		return 0, fmt.Errorf("process %d does not tell its capabilities", p.pid)
	}
	return set, nil
}
