//go:build linux

package view

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/guard"
)

// readDir returns nothing of a directory that is not there.
func readDir(root *os.Root, name string) ([]string, error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// bind shows a device's directory, to be read only.
func (v *View) bind(dir string) error {
	if err := v.sys.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mount := -1
	defer func() {
		if mount >= 0 {
			unix.Close(mount)
		}
	}()
	return within(v.namespace,
		func() (err error) {
			mount, err = clone(unix.AT_FDCWD, filepath.Join("/sys", dir))
			return err
		},
		func() error {
			return v.inSys(func(sys int) error { return mountOn(mount, sys, dir) })
		})
}

// inSys runs f with the container's /sys, which stays what it is when the
// container moves into its root.
func (v *View) inSys(f func(sys int) error) error {
	dir, err := v.sys.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(int(dir.Fd()))
}

// unbind is the reverse of showHub and bind.
func (v *View) unbind(dir string) error {
	err := within(v.namespace, nil, func() error {
		return v.inSys(func(sys int) error { return unmount(sys, dir) })
	})
	return errors.Join(err, removeIfThere(v.sys, dir), v.hideHub(dir))
}

// link makes a link at a name below the container's /sys to another.
func (v *View) link(at, target string) error {
	if err := v.sys.MkdirAll(path.Dir(at), 0o755); err != nil {
		return err
	}
	if err := removeIfThere(v.sys, at); err != nil {
		return err
	}
	return v.sys.Symlink(strings.Repeat("../", strings.Count(at, "/"))+target, at)
}

// devLink makes a link at a name below the container's /dev to a node.
func (v *View) devLink(at, node string) error {
	return inDev(v.dev, at, func(dir int, base string) error {
		if err := unlink(dir, base); err != nil {
			return err
		}
		return unix.Symlinkat(strings.Repeat("../", strings.Count(at, "/"))+node, dir, base)
	})
}

// freeName returns name, or name-2 and so on if others of the device have it.
func (v *View) freeName(d *device, name string) string {
	taken := make(map[string]bool)
	for _, s := range d.parts {
		taken[s.stable] = true
	}
	free := name
	for n := 2; taken[free]; n++ {
		free = fmt.Sprintf("%s-%d", name, n)
	}
	return free
}

// mknod makes a node below the container's /dev.
func (v *View) mknod(name string, d guard.Device) error {
	kind := uint32(unix.S_IFCHR)
	if d.Block {
		kind = unix.S_IFBLK
	}
	return inDev(v.dev, name, func(dir int, base string) error {
		if err := unlink(dir, base); err != nil {
			return err
		}
		return onThread(func() error {
			unix.Umask(0) // of the thread alone, so that no chmod can hit another file
			if err := unix.Mknodat(dir, base, kind|0o660, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
				return err
			}
			return v.give(dir, base, kind)
		})
	})
}

// clear removes what an earlier process showed.
func (v *View) clear() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	hubs, err := v.hubsThere()
	errs := []error{v.clearNodes(), v.clearLinks(), err, v.unmountWhole(hubs)}
	for _, hub := range hubs {
		number := strings.TrimPrefix(path.Base(hub), "usb")
		names, err := readDir(v.sys, hub)
		errs = append(errs, err)
		for _, name := range names {
			if strings.HasPrefix(name, number+"-") && name != number+"-0:1.0" {
				errs = append(errs, v.unbind(path.Join(hub, name)))
			}
		}
		errs = append(errs, v.hideHub(path.Join(hub, "x")))
	}
	return errors.Join(errs...)
}

// clearNodes removes the nodes, which the stable names lead to.
func (v *View) clearNodes() error {
	ports, err := readDir(v.dev, "usbns")
	if err != nil {
		return err
	}
	for _, port := range ports {
		if _, err := strconv.Atoi(port); err != nil {
			continue // a socket
		}
		names, err := readDir(v.dev, path.Join("usbns", port))
		if err != nil {
			return err
		}
		for _, name := range names {
			target, err := v.dev.Readlink(path.Join("usbns", port, name))
			if err == nil {
				err = removeDev(v.dev, path.Join("usbns", port, target))
			}
			if err != nil {
				return err
			}
		}
	}
	return removeLinks(v.dev, "usbns", 2)
}

// clearLinks removes all links to devices but those that Cover made.
func (v *View) clearLinks() error {
	for _, dir := range []string{"bus", "class", "dev", "block"} {
		if err := clearDir(v.sys, dir); err != nil {
			return err
		}
	}
	return nil
}

func clearDir(sys *os.Root, name string) error {
	dir, err := sys.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := readDir(dir, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		if at := path.Join(name, n); at == "bus/platform" || at == "class/net" {
			continue
		}
		if err := removeLinks(dir, n, 2); err != nil {
			return err
		}
	}
	return nil
}
