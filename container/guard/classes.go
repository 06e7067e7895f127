//go:build linux

package guard

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A Device is the number of a device, and which of the two kinds it is of.
type Device struct {
	Block        bool
	Major, Minor uint32
}

func (d Device) String() string { return fmt.Sprintf("%s %d:%d", d.Kind(), d.Major, d.Minor) }

// Kind returns "b" or "c".
func (d Device) Kind() string {
	if d.Block {
		return "b"
	}
	return "c"
}

// anyMinor is a whole class. No device has that number: minors have 20 bits.
const anyMinor = 1<<32 - 1

// classNames are the names in /proc/devices of what USB devices come in. One can
// come in several: an FT232R is a ttyUSB and, with its spare pins, a gpiochip.
var classNames = map[string]bool{
	"usb": true, "usb_device": true, "usbmon": true,
	"hidraw": true, "input": true, "ttyACM": true, "ttyUSB": true, "ttyHS": true,
	"sd": true, "sr": true, "sg": true, "st": true, "bsg": true, "blkext": true,
	"video4linux": true, "media": true, "cec": true, "DVB": true, "alsa": true, "sound": true,
	"gpiochip": true, "i2c": true, "iio": true, "comedi": true, "gnss": true, "lirc": true, "mmc": true,
	"cuse": true,
}

// fixed are devices and classes that are ruled over even where nobody has
// registered them (Documentation/admin-guide/devices.txt).
func fixed() []Device {
	var list []Device
	char := func(major, minor uint32) { list = append(list, Device{Major: major, Minor: minor}) }
	// st, input, sound, sg, video4linux, i2c, comedi, alsa, ttyACM, usb, ttyUSB, usb_device, DVB
	for _, major := range []uint32{9, 13, 14, 21, 81, 89, 98, 116, 166, 180, 188, 189, 212} {
		char(major, anyMinor)
	}
	// cuse, uinput and uhid make devices; so does vhci, of Bluetooth.
	for _, minor := range []uint32{203, 223, 239, 137} {
		char(10, minor)
	}
	block := func(first, last uint32) {
		for major := first; major <= last; major++ {
			list = append(list, Device{Block: true, Major: major, Minor: anyMinor})
		}
	}
	block(8, 8) // sd
	block(65, 71)
	block(128, 135)
	block(11, 11)   // sr
	block(179, 179) // mmc
	block(259, 259) // sd's partitions above 15
	return list
}

// dynamic are the major numbers that the kernel gives to who asks for any
// (CHRDEV_MAJOR_DYN_* in include/linux/fs.h, BLKDEV_MAJOR_MAX in block/genhd.c).
func dynamic() []Device {
	var list []Device
	for _, r := range []struct {
		block       bool
		first, last uint32
	}{{false, 234, 254}, {false, 384, 511}, {true, 234, 254}, {true, 384, 511}} {
		for major := r.first; major <= r.last; major++ {
			list = append(list, Device{r.block, major, anyMinor})
		}
	}
	return list
}

// Classes returns the classes of devices that a guard rules over, sorted: those
// whose numbers are fixed, and of the others those that a driver of this kernel
// has registered. Minor means nothing. What else rules over a container's devices
// has to let all of these through.
func Classes() ([]Device, error) {
	registered, err := readDevices()
	if err != nil {
		return nil, err
	}
	return classes(registered), nil
}

func classes(registered map[Device]bool) (list []Device) {
	set := maps.Clone(registered)
	for _, d := range fixed() {
		if d.Minor == anyMinor {
			set[d] = true
		}
	}
	for d, usb := range set {
		if usb {
			list = append(list, Device{Block: d.Block, Major: d.Major})
		}
	}
	slices.SortFunc(list, func(a, b Device) int {
		return cmp.Or(strings.Compare(b.Kind(), a.Kind()), cmp.Compare(a.Major, b.Major)) // c before b
	})
	return list
}

// ruled returns what is refused unless it is allowed.
func ruled() (map[Device]bool, error) {
	registered, err := readDevices()
	if err != nil {
		return nil, err
	}
	return rule(registered), nil
}

func rule(registered map[Device]bool) map[Device]bool {
	set := make(map[Device]bool)
	for _, d := range dynamic() {
		set[d] = true
	}
	maps.Copy(set, registered)
	for _, d := range fixed() {
		set[d] = true
	}
	maps.DeleteFunc(set, func(_ Device, on bool) bool { return !on })
	return set
}

func readDevices() (map[Device]bool, error) {
	f, err := os.Open("/proc/devices")
	if err != nil {
		return nil, fmt.Errorf("find the classes of devices: %w", err)
	}
	defer f.Close()
	return parseDevices(f)
}

// parseDevices reads /proc/devices: which classes are registered, and whether USB
// devices come in them.
func parseDevices(r io.Reader) (map[Device]bool, error) {
	set := make(map[Device]bool)
	block := false
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		switch line := strings.TrimSpace(lines.Text()); line {
		case "":
		case "Character devices:":
			block = false
		case "Block devices:":
			block = true
		default:
			number, name, _ := strings.Cut(line, " ")
			major, err := strconv.ParseUint(number, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("/proc/devices has a line %.40q", line)
			}
			set[Device{block, uint32(major), anyMinor}] = classNames[name]
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read /proc/devices: %w", err)
	}
	return set, nil
}
