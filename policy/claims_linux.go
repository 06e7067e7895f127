package policy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/usb"
)

// kinds are where the kernel has the drivers of what a host acts on, below its
// directory of modules.
var kinds = map[string]Class{
	"kernel/drivers/net/":             Network,
	"kernel/drivers/isdn/":            Network,
	"kernel/drivers/staging/":         Network, // those for USB are wireless adapters
	"kernel/drivers/usb/atm/":         Network,
	"kernel/drivers/bluetooth/":       Bluetooth,
	"kernel/drivers/usb/storage/":     Storage,
	"kernel/drivers/usb/image/":       Storage, // a scanner is a SCSI host
	"kernel/drivers/misc/cardreader/": Storage,
	"kernel/drivers/mmc/":             Storage,
	"kernel/drivers/hid/":             Keyboard,
	"kernel/drivers/input/keyboard/":  Keyboard,
	"kernel/drivers/input/misc/":      Keyboard,
	"kernel/drivers/input/tablet/":    Keyboard, // some have function keys
	"kernel/drivers/media/rc/":        Keyboard,
	"kernel/sound/usb/caiaq/":         Keyboard, // their keys are A, B, 1, 2
	// Receivers of television come with remote controls.
	"kernel/drivers/media/usb/au0828/":     Keyboard,
	"kernel/drivers/media/usb/cx231xx/":    Keyboard,
	"kernel/drivers/media/usb/dvb-usb/":    Keyboard,
	"kernel/drivers/media/usb/dvb-usb-v2/": Keyboard,
	"kernel/drivers/media/usb/em28xx/":     Keyboard,
	"kernel/drivers/media/usb/hdpvr/":      Keyboard,
	"kernel/drivers/media/usb/pvrusb2/":    Keyboard,
	"kernel/drivers/media/usb/siano/":      Keyboard,
	"kernel/drivers/media/usb/ttusb-dec/":  Keyboard,
}

// keyless are the drivers of HID devices that make no keys of anything: those of
// tablets and of game controllers.
var keyless = map[string]bool{"wacom": true, "hid_playstation": true, "hid_nintendo": true}

// Claims returns the drivers that claim a device by its numbers and make of it
// what [Guarded] keeps out. It reads what depmod has written of the kernel's
// modules, and finds nothing where that is not there: see [Host.ClaimsKnown].
func (h Host) Claims(d *usb.Descriptors) ([]Claim, error) {
	dir, err := h.modules()
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool)
	aliases := aliasesOf(d)
	ofVendor := fmt.Appendf(nil, "alias usb:v%04X", d.Device().Vendor)
	ofVendorHID := fmt.Appendf(nil, "v%08Xp", d.Device().Vendor)
	err = eachLine(filepath.Join(dir, "modules.alias"), func(line []byte) {
		if !bytes.HasPrefix(line, ofVendor) && !bytes.Contains(line, ofVendorHID) {
			return
		}
		if f := strings.Fields(string(line)); len(f) == 3 && matches(f[1], aliases) {
			names[f[2]] = true
		}
	})
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var claims []Claim
	err = eachLine(filepath.Join(dir, "modules.dep"), func(line []byte) {
		before, _, _ := bytes.Cut(line, []byte(":"))
		file := string(before)
		name, _, _ := strings.Cut(path.Base(file), ".ko")
		if name = strings.ReplaceAll(name, "-", "_"); !names[name] || keyless[name] {
			return
		}
		for dir, class := range kinds {
			if strings.HasPrefix(file, dir) {
				claims = append(claims, Claim{name, class})
			}
		}
	})
	return claims, err
}

// ClaimsKnown returns nil where [Host.Claims] has something to read. Otherwise the
// error says what has to be done.
func (h Host) ClaimsKnown() error {
	dir, err := h.modules()
	if err != nil {
		return err
	}
	for _, name := range []string{"modules.alias", "modules.dep"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("drivers that claim a device by its numbers are not found: "+
				"run depmod, or let a daemon in a container have the host's /lib/modules (%w)", err)
		}
	}
	return nil
}

func (h Host) modules() (string, error) {
	if h.Modules != "" {
		return h.Modules, nil
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	return filepath.Join("/lib/modules", unix.ByteSliceToString(name.Release[:])), nil
}

// hidGroups are those that the kernel may find a USB device to be of: generic,
// touch screens, sensors, RMI, Wacom, Vivaldi (HID_GROUP_* of include/linux/hid.h).
var hidGroups = []int{1, 2, 3, 4, 0x100, 0x101, 0x105}

// aliasesOf is what the kernel calls each interface that a device may have, to
// find its driver (scripts/mod/file2alias.c).
func aliasesOf(d *usb.Descriptors) (list []string) {
	dev := d.Device()
	for _, c := range d.Configurations() {
		for _, i := range c.Interfaces {
			for _, a := range i.Alternates {
				list = append(list, fmt.Sprintf("usb:v%04Xp%04Xd%04Xdc%02Xdsc%02Xdp%02Xic%02Xisc%02Xip%02Xin%02X",
					dev.Vendor, dev.Product, dev.Version, dev.Class, dev.SubClass, dev.Protocol,
					a.Class, a.SubClass, a.Protocol, i.Number))
				if a.Class != classHID {
					continue
				}
				for _, group := range hidGroups {
					list = append(list, fmt.Sprintf("hid:b0003g%04Xv%08Xp%08X", group, dev.Vendor, dev.Product))
				}
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list) // thousands of settings may be of a few classes
}

// matches takes a pattern that is not understood for one that fits.
func matches(pattern string, aliases []string) bool {
	for _, alias := range aliases {
		if ok, err := path.Match(pattern, alias); ok || err != nil {
			return true
		}
	}
	return false
}

// eachLine calls f with the lines of a file. One that is not there has none.
func eachLine(name string, f func(line []byte)) error {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // the dependencies of a module are one line
	for lines.Scan() {
		f(lines.Bytes())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
