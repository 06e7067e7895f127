//go:build linux

package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// own and nested are the namespaces to mount in: with the container's rights,
// and with those that anybody gives himself.
const (
	own    = unix.CLONE_NEWNS
	nested = unix.CLONE_NEWNS | unix.CLONE_NEWUSER
	netns  = unix.CLONE_NEWNET // a sysfs belongs to a network namespace
)

var mountCases = slices.Concat(
	mountCase("umount", "what hides the others is a mount, and mounts can be undone", 0, (*attempt).umountAll),
	mountCase("mount-sysfs", "a new sysfs has no masks", netns, (*attempt).mountSysfs),
	mountCase("mount-devtmpfs", "there is one devtmpfs, with the nodes of all", 0, (*attempt).mountDevtmpfs),
	mountCase("mount-proc", "a new proc has no masks", unix.CLONE_NEWPID, (*attempt).mountProc),
	mountCase("mount-debugfs", "debugfs describes every device", 0, (*attempt).mountDebugfs),
	mountCase("mount-cgroup", "the cgroups name the containers, and leaving one leaves its device guard", unix.CLONE_NEWCGROUP, (*attempt).mountCgroup),
	mountCase("bind-under", "a bind that is not recursive shows what other mounts cover", 0, (*attempt).bindUnder),
	mountCase("move-mask", "a mount that is moved away covers nothing", 0, (*attempt).moveMasks),
	mountCase("overlay-under", "the lower layer of an overlay is without the mounts on it", 0, (*attempt).overlayUnder),
	mountCase("mount-fusectl", "whoever may write to fusectl ends the file system of all", 0, (*attempt).mountFusectl),
)

// mountCase is tried in both kinds of namespaces.
func mountCase(name, why string, more uintptr, try func(*attempt) (string, error)) []Case {
	return []Case{
		{Name: name, Why: why, unshare: own, try: try},
		{Name: name + "-userns", Why: why, unshare: nested | more, try: try},
	}
}

// A mountPoint is a line of mountinfo.
type mountPoint struct{ path, fstype string }

// mountPoints are the mounts of this process, the last first.
func mountPoints() ([]mountPoint, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []mountPoint
	for line := range strings.Lines(string(text)) {
		mount, kind, _ := strings.Cut(line, " - ")
		m, k := strings.Fields(mount), strings.Fields(kind)
		if len(m) > 4 && len(k) > 0 {
			points = append(points, mountPoint{m[4], k[0]})
		}
	}
	slices.Reverse(points)
	return points, nil
}

// hiding tells whether a mount may hide devices.
func hiding(point string) bool {
	for _, dir := range []string{"/sys/", "/dev/", "/proc/", "/run/"} {
		if strings.HasPrefix(point, dir) {
			return true
		}
	}
	return point == "/dev"
}

// uncovered looks again after masks are gone.
func (a *attempt) uncovered(did string) (string, error) {
	for _, look := range []func() (string, error){a.sysfsPath, a.sysfsBus, a.nodeOpen} {
		if evidence, err := look(); err == nil {
			return did + ", then " + evidence, nil
		}
	}
	return "", errors.New(did + ", and see no more")
}

func (a *attempt) umountAll() (string, error) {
	points, err := mountPoints()
	if err != nil {
		return "", err
	}
	undone := 0
	var errs error
	for _, point := range points {
		if !hiding(point.path) {
			continue
		}
		if err := unix.Unmount(point.path, unix.MNT_DETACH); err != nil {
			errs = errors.Join(errs, fmt.Errorf("umount %s: %w", point.path, err))
		} else {
			undone++
		}
	}
	evidence, err := a.uncovered(fmt.Sprintf("umounted %d", undone))
	if err != nil && errs != nil {
		err = fmt.Errorf("%w; %w", err, brief(errs))
	}
	return evidence, err
}

// mountNew mounts a file system in the scratch directory.
func (a *attempt) mountNew(fstype, data string) (string, error) {
	dir := filepath.Join(a.dir, fstype)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(fstype, dir, fstype, 0, data); err != nil {
		return "", fmt.Errorf("mount %s: %w", fstype, err)
	}
	return dir, nil
}

func (a *attempt) mountSysfs() (string, error) {
	dir, err := a.mountNew("sysfs", "")
	if err != nil {
		return "", err
	}
	return a.serialAt(filepath.Join(dir, strings.TrimPrefix(a.target().Path, "/sys")))
}

func (a *attempt) mountDevtmpfs() (string, error) {
	dir, err := a.mountNew("devtmpfs", "")
	if err != nil {
		return "", err
	}
	return a.nodesIn(dir)
}

func (a *attempt) mountProc() (string, error) {
	dir, err := a.mountNew("proc", "")
	if err != nil {
		return "", err
	}
	return a.below(dir, "proc-input", "proc-disks", "proc-drivers")
}

// below tries cases that look for files with a new file system in place of the
// old.
func (a *attempt) below(dir string, names ...string) (string, error) {
	var last error
	for _, c := range textCases {
		if !slices.Contains(names, c.Name) {
			continue
		}
		moved := *a
		moved.root = filepath.Dir(dir)
		evidence, err := c.try(&moved)
		if err == nil {
			return evidence, nil
		}
		last = err
	}
	return "", last
}

func (a *attempt) mountDebugfs() (string, error) {
	dir, err := a.mountNew("debugfs", "")
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(dir, "usb/devices"))
	if err != nil {
		return "", err
	}
	if word := a.target().named(string(text)); word != "" {
		return "debugfs tells " + word, nil
	}
	return "", errors.New("debugfs does not tell")
}

// mountCgroup looks for the target's cgroup, and opens its node from the root
// cgroup.
func (a *attempt) mountCgroup() (string, error) {
	dir, err := a.mountNew("cgroup2", "")
	if err != nil {
		return "", err
	}
	if cgroup := a.target().Cgroup; cgroup != "" {
		if _, err := os.Stat(filepath.Join(dir, cgroup)); err == nil {
			return "see the cgroup " + cgroup, nil
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return "", fmt.Errorf("leave the cgroup: %w", err)
	}
	evidence, err := a.nodeMknod()
	if err != nil {
		return "", fmt.Errorf("left the cgroup as far as it goes, then %w", err)
	}
	return "left the cgroup, then " + evidence, nil
}

// bindUnder mounts single directories elsewhere, without what is mounted on
// them.
func (a *attempt) bindUnder() (string, error) {
	below := strings.TrimPrefix(a.target().Path, "/sys/")
	parts := strings.Split(below, "/")
	var errs error
	for n := range parts {
		src := "/sys/" + strings.Join(parts[:n], "/")
		dst := filepath.Join(a.dir, fmt.Sprint("bind", n))
		if err := os.Mkdir(dst, 0o755); err != nil {
			return "", err
		}
		if err := unix.Mount(src, dst, "", unix.MS_BIND, ""); err != nil {
			errs = errors.Join(errs, fmt.Errorf("bind %s: %w", src, err))
			continue
		}
		evidence, err := a.serialAt(filepath.Join(dst, strings.Join(parts[n:], "/")))
		if err == nil {
			return evidence, nil
		}
		errs = errors.Join(errs, err)
	}
	return "", brief(errs)
}

func (a *attempt) moveMasks() (string, error) {
	points, err := mountPoints()
	if err != nil {
		return "", err
	}
	moved := 0
	var errs error
	for i, point := range points {
		if !hiding(point.path) {
			continue
		}
		dst := filepath.Join(a.dir, fmt.Sprint("moved", i))
		if err := os.Mkdir(dst, 0o755); err != nil {
			return "", err
		}
		if info, err := os.Stat(point.path); err == nil && !info.IsDir() {
			dst += "-file"
			if err := os.WriteFile(dst, nil, 0o644); err != nil {
				return "", err
			}
		}
		if err := unix.Mount(point.path, dst, "", unix.MS_MOVE, ""); err != nil {
			errs = errors.Join(errs, fmt.Errorf("move %s: %w", point.path, err))
		} else {
			moved++
		}
	}
	evidence, err := a.uncovered(fmt.Sprintf("moved %d mounts away", moved))
	if err != nil && errs != nil {
		err = fmt.Errorf("%w; %w", err, brief(errs))
	}
	return evidence, err
}

func (a *attempt) overlayUnder() (string, error) {
	dir, err := a.mountNew("overlay", "lowerdir=/sys:"+a.dir)
	if err != nil {
		return "", err
	}
	return a.serialAt(filepath.Join(dir, strings.TrimPrefix(a.target().Path, "/sys")))
}

func (a *attempt) mountFusectl() (string, error) {
	dir, err := a.mountNew("fusectl", "")
	if err != nil {
		return "", err
	}
	return a.abortable(dir)
}

// abortable looks for FUSE file systems that this process can end.
func (a *attempt) abortable(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*/abort"))
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", errors.New("no FUSE file system is to be seen")
	}
	return openFirst(os.O_WRONLY, files)
}
