//go:build linux

package view

import (
	"bytes"
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

// Bounds of what one USB device is made of in /sys.
const (
	maxDirs  = 16384
	maxDepth = 24
)

// A part is a device of the kernel's that a USB device is, or that is below it.
type part struct {
	path      string // below /sys, "devices/..."
	subsystem string // "usb", "hidraw", ...
	bus       bool   // the subsystem is a bus, not a class
	devtype   string
	number    *guard.Device // nil if it has no node
	node      string        // the node's name in /dev
	env       map[string]string
}

func (p *part) name() string { return path.Base(p.path) }

// key tells whether a part is still the same.
func (p *part) key() string { return fmt.Sprint(p.path, p.subsystem, p.number, p.node) }

// links returns where in /sys the part is found: names below it.
func (p *part) links() []string {
	var at []string
	switch {
	case p.bus:
		at = append(at, path.Join("bus", p.subsystem, "devices", p.name()))
	default:
		at = append(at, path.Join("class", p.subsystem, p.name()))
	}
	if p.number != nil {
		kind := "char"
		if p.number.Block {
			kind = "block"
		}
		at = append(at, fmt.Sprintf("dev/%s/%d:%d", kind, p.number.Major, p.number.Minor))
	}
	if p.subsystem == "block" && p.devtype == "disk" {
		at = append(at, path.Join("block", p.name()))
	}
	return at
}

// stable returns a name for the node that does not change when the device comes
// again: the interface of the device at dir, and what kind of node it is.
func (p *part) stable(dir string) string {
	kind := strings.TrimRight(p.name(), "0123456789")
	if p.subsystem == "usb" && p.devtype == "usb_device" {
		kind = "usb"
	}
	if p.subsystem == "block" {
		kind = "disk"
		if n := p.env["PARTN"]; n != "" {
			kind += "-part" + n
		}
	}
	for element := range strings.SplitSeq(strings.TrimPrefix(p.path, dir), "/") {
		if _, number, ok := strings.Cut(element, ":"); ok && strings.HasPrefix(element, path.Base(dir)) {
			return number + "-" + kind
		}
	}
	return kind
}

// scan finds the parts of the USB device at dir below /sys. It is empty if the
// device is gone.
func scan(dir string) ([]*part, error) {
	var parts []*part
	dirs := 0
	err := filepath.WalkDir(filepath.Join("/sys", dir), func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		if dirs++; dirs > maxDirs || strings.Count(at, "/") > strings.Count(dir, "/")+maxDepth {
			return fmt.Errorf("device %s is made of too much", path.Base(dir))
		}
		if p := readPart(at); p != nil {
			parts = append(parts, p)
		}
		return nil
	})
	return parts, err
}

// readPart returns nil if the directory is no device.
func readPart(at string) *part {
	subsystem, err := os.Readlink(filepath.Join(at, "subsystem"))
	if err != nil {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(at, "uevent"))
	if err != nil {
		return nil
	}
	p := &part{path: strings.TrimPrefix(at, "/sys/"), subsystem: path.Base(subsystem), env: make(map[string]string)}
	p.bus = path.Base(path.Dir(subsystem)) == "bus"
	for line := range bytes.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(string(line)), "="); ok {
			p.env[key] = value
		}
	}
	p.env["SUBSYSTEM"] = p.subsystem
	p.devtype = p.env["DEVTYPE"]
	major, err1 := strconv.ParseUint(p.env["MAJOR"], 10, 32)
	minor, err2 := strconv.ParseUint(p.env["MINOR"], 10, 32)
	name := p.env["DEVNAME"]
	if err1 == nil && err2 == nil && filepath.IsLocal(name) {
		p.number = &guard.Device{Block: p.subsystem == "block", Major: uint32(major), Minor: uint32(minor)}
		p.node = name
	}
	return p
}
