//go:build linux

package escape

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var sysfsCases = []Case{
	{
		Name: "sysfs-path", Own: true, try: (*attempt).sysfsPath,
		Why: "the device's own directory tells what it is and has the files that configure it",
	},
	{
		Name: "sysfs-bus", Own: true, try: (*attempt).sysfsBus,
		Why: "lsusb, libusb and udev list what is there",
	},
	{
		Name: "sysfs-tree", Own: true, try: (*attempt).sysfsTree,
		Why: "classes, drivers, /sys/dev and /sys/block lead to a device by links of many names",
	},
	{
		Name: "sysfs-write", try: (*attempt).sysfsWrite,
		Why: "authorized, remove, unbind and uevent of a device or its controller take it from its user",
	},
}

func (a *attempt) path(name string) string { return filepath.Join(a.root, name) }

func (a *attempt) sysfsPath() (string, error) { return a.serialAt(a.path(a.target().Path)) }

// serialAt reads the serial number in a directory of sysfs.
func (a *attempt) serialAt(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "serial"))
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(string(text)) != a.target().Serial {
		return "", fmt.Errorf("%s is another device", dir)
	}
	return "read " + filepath.Join(dir, "serial"), nil
}

func (a *attempt) sysfsBus() (string, error) {
	const dir = "/sys/bus/usb/devices"
	entries, err := os.ReadDir(a.path(dir))
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if a.target().inPath(e.Name()) {
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", fmt.Errorf("not among the %d in %s", len(entries), dir)
}

// Not in sysfs itself, or large and about something else.
var notSearched = []string{"fs", "kernel", "module", "devices/system", "devices/virtual/tty"}

// speaking are the files of sysfs that say which device they are about.
var speaking = []string{"serial", "uevent", "uniq", "phys", "devices"}

func (a *attempt) sysfsTree() (string, error) {
	sys := a.path("/sys")
	found, seen := "", 0
	err := filepath.WalkDir(sys, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went meanwhile, or is closed to us
		}
		below, _ := filepath.Rel(sys, path)
		if slices.Contains(notSearched, below) {
			return fs.SkipDir
		}
		seen++
		switch {
		case a.target().inPath(below):
			found = path
		case d.Type() == fs.ModeSymlink:
			if link, err := os.Readlink(path); err == nil && a.target().inPath(link) {
				found = path + " -> " + link
			}
		case slices.Contains(speaking, d.Name()) && d.Type().IsRegular():
			if text, err := os.ReadFile(path); err == nil && a.target().named(string(text)) != "" {
				found = path + " tells " + a.target().named(string(text))
			}
		}
		if found != "" {
			return fs.SkipAll
		}
		return nil
	})
	if found == "" && err == nil {
		err = fmt.Errorf("not among %d files", seen)
	}
	return found, err
}

func (a *attempt) sysfsWrite() (string, error) {
	dir := a.path(a.target().Path)
	bus, port, _ := strings.Cut(a.target().BusID, "-")
	return openFirst(os.O_WRONLY, []string{
		filepath.Join(filepath.Dir(dir), bus+"-0:1.0", "usb"+bus+"-port"+port, "disable"),
		filepath.Join(dir, "authorized"),
		filepath.Join(dir, "remove"),
		filepath.Join(dir, "uevent"),
		filepath.Join(dir, "bConfigurationValue"),
		filepath.Join(dir, "driver/unbind"),
		a.path("/sys/bus/usb/drivers/usb/unbind"),
		a.path("/sys/bus/usb/drivers_probe"),
		a.path("/sys/bus/platform/drivers/vhci_hcd/unbind"),
		a.path("/sys/bus/platform/devices/vhci_hcd.0/driver/unbind"),
	})
}

// openFirst gives the first of the files that can be opened.
func openFirst(flags int, files []string) (string, error) {
	var errs error
	for _, file := range files {
		fd, err := unix.Open(file, flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err == nil {
			unix.Close(fd)
			return "opened " + file, nil
		}
		errs = errors.Join(errs, fmt.Errorf("%s: %w", file, err))
	}
	return "", brief(errs)
}

// brief keeps the last of many errors that were joined.
func brief(errs error) error {
	if many, ok := errs.(interface{ Unwrap() []error }); ok {
		all := many.Unwrap()
		return brief(all[len(all)-1])
	}
	return errs
}
