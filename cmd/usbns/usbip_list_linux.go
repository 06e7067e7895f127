package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

const listUsage = `usbip list [-p|--parsable] <args>
    -p, --parsable         Parsable list format
    -r, --remote=<host>    List the exportable USB devices on <host>
    -l, --local            List the local USB devices
`

func (s *stock) list(args []string) bool {
	f := pflag.NewFlagSet("list", pflag.ContinueOnError)
	host := f.StringP("remote", "r", "", "")
	local := f.BoolP("local", "l", false, "")
	parsable := f.BoolP("parsable", "p", false, "")
	err := parse(f, args)
	names := s.names()
	switch {
	case err == nil && f.Changed("remote"):
		return s.listRemote(*host, names)
	case err == nil && *local:
		return s.listLocal(*parsable, names)
	}
	return s.usage(listUsage)
}

func (s *stock) names() *usb.Names {
	names := readNames()
	if names == nil {
		s.fail("failed to open %s", usbIDs[0])
	}
	return names
}

func (s *stock) listRemote(host string, names *usb.Names) bool {
	conn, err := s.dial(host)
	if err != nil {
		s.fail("could not connect to %s:%s: %s", host, s.port, resolverText(err))
		s.reason(err)
		return false
	}
	defer conn.Close()
	devices, err := usbip.List(s.ctx, conn)
	if err != nil {
		s.fail("Exported Device List Request failed - %s\n", opStatusText(err))
		s.reason(err)
		s.fail("failed to get device list from %s", host)
		return false
	}
	if len(devices) == 0 {
		s.info("no exportable devices found on %s", host)
		return true
	}
	return printList(s.out, host, devices, names) == nil
}

// dial refuses an empty host, which Dial would take for this machine.
func (s *stock) dial(host string) (net.Conn, error) {
	if host == "" {
		return nil, &net.DNSError{Err: "no host is named", IsNotFound: true}
	}
	return usbip.Dial(s.ctx, net.JoinHostPort(host, s.port))
}

// resolverText is what gai_strerror says.
func resolverText(err error) string {
	dns, ok := errors.AsType[*net.DNSError](err)
	switch {
	case !ok:
		return "System error"
	case dns.IsNotFound:
		return "Name or service not known"
	}
	return "Temporary failure in name resolution"
}

// A localDevice is a real device of this machine.
type localDevice struct {
	path, busid     string
	vendor, product string // four hexadecimal digits each
}

// listLocal lists the machine's real devices that are not hubs, in the order of
// their directories.
func (s *stock) listLocal(parsable bool, names *usb.Names) bool {
	devices, err := localDevices(filepath.Join(s.sysfs, "bus/usb/devices"))
	if err != nil {
		s.fail("problem getting device attributes: %v", err)
		return false
	}
	for _, d := range devices {
		if parsable {
			fmt.Fprintf(s.out, "busid=%s#usbid=%s:%s#\n", d.busid, d.vendor, d.product)
			continue
		}
		vendor, _ := strconv.ParseUint(d.vendor, 16, 16)
		product, _ := strconv.ParseUint(d.product, 16, 16)
		fmt.Fprintf(s.out, " - busid %s (%s:%s)\n   %s\n\n", d.busid, d.vendor, d.product,
			productName(names, uint16(vendor), uint16(product)))
	}
	return true
}

func localDevices(dir string) ([]localDevice, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a machine without USB
	}
	if err != nil {
		return nil, err
	}
	var list []localDevice
	for _, e := range entries {
		path, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil || strings.Contains(path, "/vhci_hcd") {
			continue // gone meanwhile, or attached here
		}
		read := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(path, name))
			return strings.TrimSpace(string(b))
		}
		d := localDevice{path: path, busid: e.Name(), vendor: read("idVendor"), product: read("idProduct")}
		if d.vendor == "" || d.product == "" || read("bDeviceClass") == "09" {
			continue // an interface, gone meanwhile, or a hub
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b localDevice) int { return cmp.Compare(a.path, b.path) })
	return list, nil
}
