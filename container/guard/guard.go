//go:build linux

package guard

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrOccupied is wrapped by the error of an Attach to a cgroup, or below one,
// where another's program leaves no room for a guard.
var ErrOccupied = errors.New("another device program does not let a guard in")

// A Guard stands on a cgroup. It is safe for concurrent use.
type Guard struct {
	mu     sync.Mutex
	cgroup *os.File
	rules  *ebpf.Map
	id     ebpf.ProgramID
}

// Attach puts a guard on the cgroup whose directory is path, or finds the one
// that is there. Nothing is allowed then.
func Attach(path string) (*Guard, error) {
	g := &Guard{}
	if err := g.attach(path); err != nil {
		return nil, errors.Join(fmt.Errorf("guard the devices of %s: %w", path, err), g.Close())
	}
	return g, nil
}

func (g *Guard) attach(path string) (err error) {
	if g.cgroup, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(g.cgroup.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return errors.New("it is no cgroup of version 2 (boot with systemd.unified_cgroup_hierarchy=1)")
	}
	if err := g.find(); err != nil {
		return err
	}
	if g.rules == nil {
		if g.rules, err = newRules(); err != nil {
			return err
		}
	}
	if err := g.refresh(true); err != nil {
		return err
	}
	if g.id == 0 {
		return g.put()
	}
	return nil
}

// Stands reports whether a guard is on the cgroup whose directory is path.
func Stands(path string) (stands bool, err error) {
	cgroup, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, err
	}
	g := &Guard{cgroup: cgroup}
	defer g.Close()
	err = g.each(func(_ *ebpf.Program, info *ebpf.ProgramInfo) (bool, error) {
		stands = info.Name == programName
		return stands, nil
	})
	return stands, err
}

// each calls f with each program on the cgroup until it returns true.
func (g *Guard) each(f func(*ebpf.Program, *ebpf.ProgramInfo) (bool, error)) error {
	on, err := link.QueryPrograms(link.QueryOptions{Target: int(g.cgroup.Fd()), Attach: ebpf.AttachCGroupDevice})
	if err != nil {
		return fmt.Errorf("find the programs of a cgroup: %w", err)
	}
	for _, a := range on.Programs {
		p, err := ebpf.NewProgramFromID(a.ID)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was taken off meanwhile
		}
		if err != nil {
			return err
		}
		info, err := p.Info()
		done := false
		if err == nil {
			done, err = f(p, info)
		}
		p.Close()
		if done || err != nil {
			return err
		}
	}
	return nil
}

// find looks for a guard of an earlier process.
func (g *Guard) find() error {
	return g.each(func(_ *ebpf.Program, info *ebpf.ProgramInfo) (bool, error) {
		maps, _ := info.MapIDs()
		id, ok := info.ID()
		if info.Name != programName || len(maps) != 1 || !ok {
			return false, nil
		}
		rules, err := ebpf.NewMapFromID(maps[0])
		if err != nil {
			return false, fmt.Errorf("open the table of a guard that is there: %w", err)
		}
		if rules.Type() != ebpf.Hash || rules.KeySize() != 12 || rules.ValueSize() != 4 {
			rules.Close()
			return false, nil
		}
		g.rules, g.id = rules, id
		return true, nil
	})
}

// put attaches a new program.
func (g *Guard) put() error {
	p, err := newProgram(g.rules, nil)
	if err != nil {
		return err
	}
	defer func() { p.Close() }()
	attach := func(flags uint32) error {
		return link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: int(g.cgroup.Fd()), Program: p, Attach: ebpf.AttachCGroupDevice, Flags: flags,
		})
	}
	err = attach(unix.BPF_F_ALLOW_MULTI)
	if errors.Is(err, unix.EPERM) {
		var next asm.Instructions
		if next, err = g.onlyProgram(); err != nil {
			return err
		}
		p.Close()
		if p, err = newProgram(g.rules, next); err != nil {
			return err
		}
		// The kernel takes a program with the flag of the one it replaces.
		if err = attach(0); errors.Is(err, unix.EPERM) {
			err = attach(unix.BPF_F_ALLOW_OVERRIDE)
		}
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: %w", ErrOccupied, err)
		}
	}
	if err != nil {
		return err
	}
	info, err := p.Info()
	if err != nil {
		return err
	}
	g.id, _ = info.ID()
	return nil
}

// onlyProgram returns what the one program does that stands in the way.
func (g *Guard) onlyProgram() (next asm.Instructions, err error) {
	count := 0
	err = g.each(func(p *ebpf.Program, info *ebpf.ProgramInfo) (bool, error) {
		count++
		if next, err = rulesOf(p); err != nil {
			return false, fmt.Errorf("%w, and the rules of %q cannot be kept: %w", ErrOccupied, info.Name, err)
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if count != 1 {
		return nil, fmt.Errorf("%w: it is on a parent (let the container's runtime attach with BPF_F_ALLOW_MULTI)", ErrOccupied)
	}
	return next, nil
}

// refresh rules over the classes that there are now, and forgets what is
// allowed if told so.
func (g *Guard) refresh(forget bool) error {
	now, err := ruled()
	if err != nil {
		return err
	}
	classes := make(map[key]bool, len(now))
	for d := range now {
		classes[d.key()] = true
		if err := g.rules.Update(d.key(), refused, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("rule over %v: %w", d, err)
		}
	}
	var k key
	var value uint32
	var old []key
	for all := g.rules.Iterate(); all.Next(&k, &value); {
		if value == refused && !classes[k] || value == allowed && forget {
			old = append(old, k)
		}
	}
	for _, k := range old {
		if err := g.rules.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget %v: %w", k, err)
		}
	}
	return nil
}

// Allow lets the container open a device and make a node of it.
func (g *Guard) Allow(d Device) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.rules.Update(d.key(), allowed, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("allow device %v: %w", d, err)
	}
	return nil
}

// Forbid takes back an Allow. That there was none is no error.
func (g *Guard) Forbid(d Device) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.rules.Delete(d.key()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forbid device %v: %w", d, err)
	}
	return nil
}

// Check puts the guard back if somebody took it off, and rules over classes that
// are new. What is allowed stays so.
func (g *Guard) Check() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.check(); err != nil {
		return fmt.Errorf("guard the devices of %s: %w", g.cgroup.Name(), err)
	}
	return nil
}

func (g *Guard) check() error {
	if err := g.refresh(false); err != nil {
		return err
	}
	stands := false
	err := g.each(func(_ *ebpf.Program, info *ebpf.ProgramInfo) (bool, error) {
		id, _ := info.ID()
		stands = id == g.id
		return stands, nil
	})
	if err != nil || stands {
		return err
	}
	return g.put()
}

// Close lets go of the guard, which stays on the cgroup.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	if g.rules != nil {
		errs = append(errs, g.rules.Close())
	}
	if g.cgroup != nil {
		errs = append(errs, g.cgroup.Close())
	}
	return errors.Join(errs...)
}
