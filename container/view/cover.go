//go:build linux

package view

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Of these a View needs bus, class, dev, block and devices.
var (
	coveredDirs = []string{
		"sys/module", "sys/bus", "sys/class", "sys/dev", "sys/block", "sys/devices",
		"sys/kernel/debug", "sys/kernel/tracing",
		"proc/bus", "proc/scsi", "proc/asound", "proc/tty",
	}
	coveredFiles = []string{"proc/partitions", "proc/diskstats", "proc/modules"}
	// optional are those that a kernel need not have.
	optional = map[string]bool{
		"sys/kernel/debug": true, "sys/kernel/tracing": true,
		"proc/scsi": true, "proc/asound": true, "proc/partitions": true, "proc/diskstats": true, "proc/modules": true,
		"sys/devices/virtual/net": true, "sys/class/net": true,
	}
	putBack = []string{"sys/devices/system", "sys/devices/virtual/net", "sys/class/net", platform}
)

// Covered returns what [Cover] covers where the kernel has it, as absolute paths
// inside.
func Covered() []string {
	var all []string
	for _, name := range slices.Concat(coveredDirs, coveredFiles) {
		all = append(all, "/"+name)
	}
	return all
}

// CoveredOf returns what [Cover] covers of a controller of the kernel, vhci_hcd.N:
// its directory, or a file in it. What is mounted there goes when the kernel
// deletes the controller, and what it makes then is not covered.
func CoveredOf(controller string) string {
	at := path.Join(platform, controller)
	if at == hostController {
		at = path.Join(at, "usbip_debug")
	}
	return "/" + at
}

// hostController is where the stock tools look for a controller. They want its
// parent to be on a sysfs as well.
const (
	platform       = "sys/devices/platform"
	hostController = platform + "/vhci_hcd.0"
)

// An empty file that nobody may open, and an empty directory, below sys/module
// until that is covered again.
const (
	noFile = "file"
	noDir  = "dir"
)

// Cover hides all USB devices in a mount namespace, as in /proc/PID/ns/mnt, nil
// for that of this process. Its root is or will be the directory root, with /sys
// and /proc in it. A /sys that is shared with another namespace is covered there
// too.
//
// If it fails some of it is covered and some is not: no program may run there.
func Cover(namespace *os.File, root string) error {
	f := func() error { return withDir(root, cover) }
	var err error
	if namespace == nil {
		err = onThread(f)
	} else {
		err = within(namespace, nil, f)
	}
	if err != nil {
		return fmt.Errorf("hide devices: %w", err)
	}
	return nil
}

func cover(root int) error {
	if err := wantType(root, "sys", unix.SYSFS_MAGIC); err != nil {
		return fmt.Errorf("%w (mount a sysfs there)", err)
	}
	c := coverer{root: root}
	defer c.close()
	if err := c.cloneAll(); err != nil {
		return err
	}
	for _, name := range coveredDirs {
		if err := c.coverDir(name); err != nil {
			return err
		}
	}
	if err := c.makePlaces(); err != nil {
		return err
	}
	for _, name := range putBack {
		if mount, ok := c.cloned[name]; ok {
			if err := mountOn(mount, root, name); err != nil {
				return err
			}
		}
	}
	for _, name := range coveredFiles {
		if err := c.coverFile(name); err != nil {
			return err
		}
	}
	if err := c.coverPlatform(); err != nil {
		return err
	}
	if err := c.coverController(); err != nil {
		return err
	}
	return c.coverDir("sys/module") // and noFile
}

// wantType checks the type of a file system.
func wantType(dir int, name string, magic int64) error {
	fd, err := lookup(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Statfs_t
	if err := unix.Fstatfs(fd, &stat); err != nil {
		return &os.PathError{Op: "statfs", Path: name, Err: err}
	}
	if stat.Type != magic {
		return fmt.Errorf("/%s of the container has a file system of type %#x, not %#x", name, stat.Type, magic)
	}
	return nil
}

// wantControllers checks that the kernel's controllers are those that were covered.
func wantControllers(root int) error {
	c := coverer{root: root}
	entries, err := c.list(platform)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "vhci_hcd.") {
			continue
		}
		if err := wantType(root, strings.TrimPrefix(CoveredOf(e.Name()), "/"), unix.TMPFS_MAGIC); err != nil {
			return err
		}
	}
	return nil
}

type coverer struct {
	root   int
	cloned map[string]int
}

func (c *coverer) close() {
	for _, fd := range c.cloned {
		unix.Close(fd)
	}
}

func (c *coverer) cloneAll() error {
	c.cloned = make(map[string]int)
	for _, name := range putBack {
		fd, err := clone(c.root, name)
		if errors.Is(err, fs.ErrNotExist) && optional[name] {
			continue
		}
		if err != nil {
			return err
		}
		c.cloned[name] = fd
	}
	return nil
}

func (c *coverer) coverDir(name string) error {
	mount, err := newTmpfs()
	if err != nil {
		return err
	}
	return c.put(mount, name)
}

func (c *coverer) coverFile(name string) error { return c.coverWith(noFile, name) }

func (c *coverer) coverWith(nothing, name string) error {
	mount, err := clone(c.root, "sys/module/"+nothing)
	if err != nil {
		return err
	}
	return c.put(mount, name)
}

// put mounts on name what is mounted nowhere, and closes it.
func (c *coverer) put(mount int, name string) error {
	defer unix.Close(mount)
	err := mountOn(mount, c.root, name)
	if optional[name] && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// makePlaces makes the directories that the rest is mounted on, and the link by
// which the stock tools find a controller.
func (c *coverer) makePlaces() error {
	for name := range c.cloned {
		if err := c.mkdirs(name); err != nil {
			return err
		}
	}
	const links = "sys/bus/platform/devices"
	if err := c.mkdirs(links); err != nil {
		return err
	}
	err := c.in(links, func(dir int) error {
		return unix.Symlinkat("../../../devices/platform/vhci_hcd.0", dir, "vhci_hcd.0")
	})
	if err != nil {
		return err
	}
	return c.in("sys/module", func(dir int) error {
		return errors.Join(unix.Mknodat(dir, noFile, unix.S_IFREG, 0), unix.Mkdirat(dir, noDir, 0o755))
	})
}

// mkdirs makes directories beneath one that is covered.
func (c *coverer) mkdirs(name string) error {
	elements := strings.Split(name, "/")
	for i := 2; i < len(elements); i++ {
		err := c.in(path.Join(elements[:i]...), func(dir int) error { return unix.Mkdirat(dir, elements[i], 0o755) })
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// in runs f with the directory at name. There is no /proc of ours here to make
// an os.Root by.
func (c *coverer) in(name string, f func(dir int) error) error {
	dir, err := lookup(c.root, name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := f(dir); err != nil {
		return &os.PathError{Op: "make", Path: name, Err: err}
	}
	return nil
}

// coverPlatform covers all devices of the bus platform but vhci_hcd.0. Devices of
// a View can be on the other controllers.
func (c *coverer) coverPlatform() error {
	entries, err := c.list(platform)
	if err != nil {
		return err
	}
	for _, e := range entries {
		at := path.Join(platform, e.Name())
		switch {
		case !e.IsDir(), at == hostController, e.Name() == "power":
		case strings.HasPrefix(e.Name(), "vhci_hcd."):
			err = c.coverDir(at)
		default:
			err = c.coverWith(noDir, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// coverController covers the kernel's control files and root hubs.
func (c *coverer) coverController() error {
	entries, err := c.list(hostController)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (load vhci-hcd)", err)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		at := path.Join(hostController, name)
		switch {
		case name == "attach", name == "detach", name == "nports", name == "usbip_debug",
			name == "status", strings.HasPrefix(name, "status."):
			err = c.coverFile(at)
		case strings.HasPrefix(name, "usb"):
			err = c.coverDir(at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *coverer) list(name string) ([]fs.DirEntry, error) {
	fd, err := unix.Openat(c.root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	return dir.ReadDir(-1)
}
