//go:build linux

package view

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/guard"
	"github.com/usbns/usbns/internal/must"
)

// A container that may mount has bound a directory of the host's, and a file of
// it, where the daemon makes and removes its own.
func TestNothingOfTheHostsIsTouched(t *testing.T) {
	at := t.TempDir()
	err := onThread(func() error { return inMounts(t, at) })
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs CAP_SYS_ADMIN, to mount: ", err)
	}
	must.OK(t, err)
}

// inMounts runs in a thread that ends.
func inMounts(t *testing.T, at string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dev, host := filepath.Join(at, "dev"), filepath.Join(at, "host")
	for _, dir := range []string{dev, host} {
		if err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount("test", dir, "tmpfs", 0, "")); err != nil {
			return err
		}
	}
	file := filepath.Join(host, "005")
	err := errors.Join(
		os.WriteFile(file, nil, 0o600), os.Symlink("nowhere", filepath.Join(host, "link")),
		os.MkdirAll(dev+"/bus/usb/001", 0o755), os.MkdirAll(dev+"/usbns/x", 0o755), os.WriteFile(dev+"/hidraw0", nil, 0o600),
		unix.Mount(host, dev+"/bus/usb/001", "", unix.MS_BIND, ""),
		unix.Mount(host, dev+"/usbns/x", "", unix.MS_BIND, ""),
		unix.Mount(file, dev+"/hidraw0", "", unix.MS_BIND, ""),
	)
	if err != nil {
		return err
	}
	v := &View{cfg: Config{UID: 1000, GID: 1000}}
	if v.dev, err = os.OpenRoot(dev); err != nil {
		return err
	}
	defer v.dev.Close()
	mouse := guard.Device{Major: 189, Minor: 4}
	for what, err := range map[string]error{
		"make a node":           v.mknod("bus/usb/001/005", mouse),
		"make one on a file":    v.mknod("hidraw0", mouse),
		"make a directory":      v.mknod("bus/usb/001/new/005", mouse),
		"make a link":           v.devLink("bus/usb/001/link", "hidraw0"),
		"remove a node":         removeDev(v.dev, "bus/usb/001/005"),
		"remove what was there": v.clearNodes(),
		"own a file":            inDev(v.dev, "hidraw0", func(dir int, base string) error { return v.give(dir, base, unix.S_IFREG) }),
	} {
		if err == nil {
			t.Errorf("%s: done", what)
		}
	}
	if _, err := os.Lstat(filepath.Join(host, "link")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(host, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory is made: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Uid != 0 || st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("the host's file has mode %o, owner %d: %v", st.Mode, st.Uid, err)
	}
	return nil
}

// What is removed is links and sockets.
func TestRemoveLinks(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	must.OK(t, err)
	defer root.Close()
	must.OK(t, root.MkdirAll("class/hidraw", 0o755))
	must.OK(t, root.Symlink("/", "class/hidraw/hidraw0"))
	must.OK(t, removeLinks(root, "class", 2))
	_, err = root.Lstat("class")
	must.Is(t, err, fs.ErrNotExist)
	must.OK(t, removeLinks(root, "class", 2))

	must.OK(t, root.MkdirAll("bus/usb/devices/deep", 0o755))
	must.OK(t, root.WriteFile("bus/usb/file", nil, 0o600))
	if err := removeLinks(root, "bus", 2); err == nil {
		t.Error("more is removed than there can be")
	}
	for _, name := range []string{"bus/usb/file", "bus/usb/devices/deep"} {
		_, err := root.Lstat(name)
		must.OK(t, err)
	}
}
