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
)

// What lsusb -t prints of a root hub and its interface.
var (
	hubFiles = []string{
		"bConfigurationValue", "bDeviceClass", "bDeviceProtocol", "bDeviceSubClass", "bMaxPacketSize0", "bMaxPower",
		"bNumConfigurations", "bNumInterfaces", "bcdDevice", "bmAttributes", "busnum", "devnum", "devpath",
		"idProduct", "idVendor", "manufacturer", "maxchild", "product", "rx_lanes", "speed", "tx_lanes", "version",
	}
	hubInterfaceFiles = []string{
		"bAlternateSetting", "bInterfaceClass", "bInterfaceNumber", "bInterfaceProtocol", "bInterfaceSubClass", "bNumEndpoints",
	}
)

// showHub copies the root hub that a device is on.
func (v *View) showHub(dir string) error {
	hub := path.Dir(dir)
	name := path.Base(hub)
	number, ok := strings.CutPrefix(name, "usb")
	if !ok {
		return fmt.Errorf("it is on %s, which is no root hub", name)
	}
	inside := path.Join(hub, number+"-0:1.0")
	if err := v.sys.MkdirAll(inside, 0o755); err != nil {
		return err
	}
	for at, files := range map[string][]string{hub: hubFiles, inside: hubInterfaceFiles} {
		for _, f := range files {
			text, err := os.ReadFile(filepath.Join("/sys", at, f))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := v.writeNew(path.Join(at, f), text); err != nil {
				return err
			}
		}
		if err := v.link(path.Join("bus/usb/devices", path.Base(at)), at); err != nil {
			return err
		}
	}
	return nil
}

// writeNew writes a file unless there is one.
func (v *View) writeNew(name string, text []byte) error {
	f, err := v.sys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// hideHub removes what showHub made, if no other device is on the hub.
func (v *View) hideHub(dir string) error {
	hub := path.Dir(dir)
	for _, d := range v.devices {
		if path.Dir(d.dir) == hub {
			return nil
		}
	}
	name := path.Base(hub)
	inside := strings.TrimPrefix(name, "usb") + "-0:1.0"
	errs := []error{
		removeIfThere(v.sys, path.Join("bus/usb/devices", name)),
		removeIfThere(v.sys, path.Join("bus/usb/devices", inside)),
	}
	for _, f := range hubInterfaceFiles {
		errs = append(errs, removeIfThere(v.sys, path.Join(hub, inside, f)))
	}
	errs = append(errs, removeIfThere(v.sys, path.Join(hub, inside)))
	for _, f := range hubFiles {
		errs = append(errs, removeIfThere(v.sys, path.Join(hub, f)))
	}
	if !strings.HasPrefix("sys/"+hub, hostController+"/") {
		errs = append(errs, removeIfThere(v.sys, hub))
	}
	return errors.Join(errs...)
}

// showWhole shows a root hub with all that is and will be on it.
func (v *View) showWhole(hub string) error {
	if err := v.bind(hub); err != nil {
		return err
	}
	name := path.Base(hub)
	inside := strings.TrimPrefix(name, "usb") + "-0:1.0"
	return errors.Join(
		v.link(path.Join("bus/usb/devices", name), hub),
		v.link(path.Join("bus/usb/devices", inside), path.Join(hub, inside)),
	)
}

// unmountWhole is the reverse of showWhole, for those of the hubs that are whole.
func (v *View) unmountWhole(hubs []string) error {
	return within(v.namespace, nil, func() error {
		return v.inSys(func(sys int) error {
			var errs []error
			for _, hub := range hubs {
				if wantType(sys, hub, unix.SYSFS_MAGIC) == nil { // not what covers it
					errs = append(errs, unmount(sys, hub))
				}
			}
			return errors.Join(errs...)
		})
	})
}

// hubsThere returns the directories of root hubs that the container has, with
// something in them or not.
func (v *View) hubsThere() (hubs []string, err error) {
	const platform = "devices/platform"
	controllers, err := readDir(v.sys, platform)
	errs := []error{err}
	for _, c := range controllers {
		if !strings.HasPrefix(c, "vhci_hcd.") {
			continue
		}
		names, err := readDir(v.sys, path.Join(platform, c))
		errs = append(errs, err)
		for _, name := range names {
			number, ok := strings.CutPrefix(name, "usb")
			if _, err := strconv.Atoi(number); ok && err == nil {
				hubs = append(hubs, path.Join(platform, c, name))
			}
		}
	}
	return hubs, errors.Join(errs...)
}
