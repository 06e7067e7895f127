//go:build linux

package view

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/guard"
	"github.com/usbns/usbns/uevent"
)

// A Config says where a container is.
type Config struct {
	// PID is a process in the mount namespace and network namespace of the
	// container. Mounts in its namespace should spread to those of the programs.
	PID int
	// Root is the container's root in that namespace, or will be.
	Root string
	// Cgroup is the directory of the container's cgroup.
	Cgroup string
	// UID and GID own the nodes.
	UID, GID uint32
	// RootUID is who is root in the container.
	RootUID uint32
	// Hubs are the directories below /sys of root hubs that are the container's
	// whole.
	Hubs []string
}

// A View is what one container sees. It is safe for concurrent use.
type View struct {
	cfg       Config
	hubs      []string // those of cfg, named from /sys
	namespace *os.File
	guard     *guard.Guard
	events    *uevent.Sender // nil where the kernel itself tells

	sys, dev *os.Root // of the container

	mu      sync.Mutex
	devices map[int]*device // by port; nil once closed
}

// A device is what is shown of one that is attached.
type device struct {
	dir   string // below /sys
	parts map[string]*shown
}

type shown struct {
	*part
	stable string // "" if there is no node
}

// Open finds the view of a container that is covered, and guards its devices. It
// shows none at first: what an earlier View showed is removed.
func Open(cfg Config) (_ *View, err error) {
	v := &View{cfg: cfg, devices: make(map[int]*device)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("show devices to process %d: %w", cfg.PID, err), v.Close())
		}
	}()
	if v.guard, err = guard.Attach(cfg.Cgroup); err != nil {
		return nil, err
	}
	if v.namespace, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", cfg.PID)); err != nil {
		return nil, err
	}
	if err := v.openRoots(); err != nil {
		return nil, err
	}
	if err := v.openSender(); err != nil {
		return nil, err
	}
	if err := v.clear(); err != nil {
		return nil, err
	}
	for _, hub := range cfg.Hubs {
		hub = below(hub)
		v.hubs = append(v.hubs, hub)
		if err := v.showWhole(hub); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// below returns a directory's name from /sys.
func below(dir string) string {
	return strings.TrimPrefix(strings.TrimPrefix(filepath.Clean(dir), "/sys"), "/")
}

// open opens the container's directories. It runs in its namespace, where no
// /proc is of use.
func (v *View) open(sys, dev *int) error {
	return withDir(v.cfg.Root, func(root int) (err error) {
		for _, name := range coveredDirs {
			if strings.HasPrefix(name, "sys/") && !optional[name] {
				if err := wantType(root, name, unix.TMPFS_MAGIC); err != nil {
					return fmt.Errorf("its /sys is not covered: %w", err)
				}
			}
		}
		if err := wantControllers(root); err != nil {
			return fmt.Errorf("its /sys is not covered any more, as when vhci_hcd was unloaded: %w (end the container)", err)
		}
		if err := wantType(root, "dev", unix.TMPFS_MAGIC); err != nil {
			return err
		}
		if *sys, err = lookup(root, "sys"); err != nil {
			return err
		}
		*dev, err = lookup(root, "dev")
		return err
	})
}

// openRoots opens the same from here, and sees that /dev is not the host's.
func (v *View) openRoots() error {
	sys, dev := -1, -1
	err := within(v.namespace, nil, func() error { return v.open(&sys, &dev) })
	if err == nil {
		v.sys, err = adopt(sys)
	}
	if err == nil {
		v.dev, err = adopt(dev)
	}
	for _, fd := range []int{sys, dev} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if err != nil {
		return err
	}
	ours, err := os.Stat("/dev")
	if err != nil {
		return err
	}
	theirs, err := v.dev.Stat(".")
	if err != nil {
		return err
	}
	if os.SameFile(theirs, ours) {
		return errors.New("its /dev is the host's: mount a tmpfs there")
	}
	return nil
}

func adopt(dir int) (*os.Root, error) { return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir)) }

func (v *View) openSender() error {
	netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", v.cfg.PID))
	if err != nil {
		return err
	}
	defer netns.Close()
	v.events, err = uevent.NewSender(netns, v.cfg.RootUID, v.cfg.RootUID)
	if errors.Is(err, uevent.ErrHeard) {
		return nil
	}
	return err
}

// Close lets go of the container. It goes on seeing what it sees, and its guard
// stays.
func (v *View) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.devices = nil
	var errs []error
	if v.guard != nil {
		errs = append(errs, v.guard.Close())
	}
	if v.events != nil {
		errs = append(errs, v.events.Close())
	}
	for _, root := range []*os.Root{v.sys, v.dev} {
		if root != nil {
			errs = append(errs, root.Close())
		}
	}
	if v.namespace != nil {
		errs = append(errs, v.namespace.Close())
	}
	return errors.Join(errs...)
}

// Add shows the device whose directory is dir, below /sys, on a port. What of it
// comes later is shown by Sync. If anything fails none of it is shown. It returns
// what takes the device away again, and nothing that has come to the port since.
func (v *View) Add(port int, dir string) (remove func() error, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.devices == nil {
		return nil, os.ErrClosed
	}
	if err := v.remove(port); err != nil {
		return nil, err
	}
	dir = below(dir)
	d := &device{dir: dir, parts: make(map[string]*shown)}
	v.devices[port] = d
	err = v.guard.Check()
	if err == nil && !v.isThere(dir) {
		err = v.showHub(dir)
		if err == nil {
			err = v.bind(dir)
		}
	}
	if err == nil {
		err = v.sync(port)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("show device %s to its container: %w", path.Base(dir), err), v.remove(port))
	}
	return func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.devices[port] != d {
			return nil
		}
		return v.remove(port)
	}, nil
}

func (v *View) remove(port int) error {
	d := v.devices[port]
	if d == nil {
		return nil
	}
	delete(v.devices, port)
	var errs []error
	for _, s := range d.parts {
		errs = append(errs, v.hide(s))
	}
	if !v.isThere(d.dir) {
		errs = append(errs, v.unbind(d.dir))
	}
	return errors.Join(errs...)
}

// isThere tells whether a device's directory is on a root hub that is there
// whole.
func (v *View) isThere(dir string) bool { return slices.Contains(v.hubs, path.Dir(dir)) }

// Has tells whether a directory below /sys is of a device that is shown.
func (v *View) Has(dir string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir = strings.TrimPrefix(dir, "/")
	for _, d := range v.devices {
		if dir == d.dir || strings.HasPrefix(dir, d.dir+"/") {
			return true
		}
	}
	return false
}

// Sync shows what has come of the devices, and takes away what is gone.
func (v *View) Sync() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.devices) == 0 {
		return nil
	}
	errs := []error{v.guard.Check()}
	for port := range v.devices {
		errs = append(errs, v.sync(port))
	}
	return errors.Join(errs...)
}

func (v *View) sync(port int) error {
	d := v.devices[port]
	parts, err := scan(d.dir)
	if err != nil {
		return err
	}
	now := make(map[string]*part, len(parts))
	for _, p := range parts {
		now[p.key()] = p
	}
	var errs []error
	for key, s := range d.parts {
		if now[key] == nil {
			delete(d.parts, key)
			errs = append(errs, v.hide(s))
		}
	}
	for _, p := range parts { // parents come first
		if d.parts[p.key()] != nil {
			continue
		}
		s := &shown{part: p}
		d.parts[p.key()] = s
		if err := v.show(port, d, s); err != nil {
			delete(d.parts, p.key())
			errs = append(errs, fmt.Errorf("show %s: %w", p.name(), err), v.hide(s))
		}
	}
	return errors.Join(errs...)
}

// show makes links and nodes of a part, and tells of it.
func (v *View) show(port int, d *device, s *shown) error {
	for _, at := range s.links() {
		if err := v.link(at, s.path); err != nil {
			return err
		}
	}
	if s.number != nil {
		if err := v.guard.Allow(*s.number); err != nil {
			return err
		}
		if err := v.mknod(s.node, *s.number); err != nil {
			return err
		}
		s.stable = v.freeName(d, path.Join("usbns", strconv.Itoa(port), s.part.stable(d.dir)))
		if err := v.devLink(s.stable, s.node); err != nil {
			return err
		}
	}
	v.tell("add", s.part)
	return nil
}

// hide is the reverse of show, of as much as there is.
func (v *View) hide(s *shown) error {
	var errs []error
	if s.number != nil {
		errs = append(errs, v.guard.Forbid(*s.number), removeDev(v.dev, s.node))
		if s.stable != "" {
			errs = append(errs, removeDev(v.dev, s.stable))
		}
	}
	for _, at := range s.links() {
		errs = append(errs, removeIfThere(v.sys, at))
	}
	v.tell("remove", s.part)
	return errors.Join(errs...)
}

// tell is for whoever listens; that nobody can is not the device's fault.
func (v *View) tell(action string, p *part) {
	if v.events == nil {
		return
	}
	e := uevent.Event{Action: action, DevPath: "/" + p.path, Env: p.env}
	_ = v.events.Kernel(e)
	_ = v.events.Udev(e)
}

func removeIfThere(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
