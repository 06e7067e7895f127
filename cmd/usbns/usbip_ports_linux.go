package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

const (
	attachUsage = `usbip attach <args>
    -r, --remote=<host>      The machine with exported USB devices
    -b, --busid=<busid>    Busid of the device on <host>
    -d, --device=<devid>    Id of the virtual UDC on <host>
    -i, --vhci-ix=<ix>   index of the vhci_hcd to attach it to (defaults to 0)
`
	detachUsage = `usbip detach <args>
    -p, --port=<port>    vhci_hcd port the device is on
    -i, --vhci-ix=<ix>   index of the vhci_hcd the device is on (defaults to 0)
`
	portUsage = `usbip port <args>
    -i, --vhci-ix=<ix>   index of the vhci_hcd the device is on (defaults to 0)
    -a, --all            list the ports from all the available vhci_hcd's
`
)

func (s *stock) attach(args []string) bool {
	var host, busid, ref string
	f := pflag.NewFlagSet("attach", pflag.ContinueOnError)
	f.StringVarP(&host, "remote", "r", "", "")
	f.StringVarP(&busid, "busid", "b", "", "")
	f.StringVarP(&busid, "device", "d", "", "")
	f.StringVarP(&ref, "vhci-ix", "i", "0", "")
	if err := parse(f, args); err != nil || host == "" || busid == "" {
		return s.usage(attachUsage)
	}
	conn, err := s.dial(host)
	if err != nil {
		s.fail("tcp connect")
		s.reason(err)
		return false
	}
	defer conn.Close()
	info, err := usbip.RequestImport(s.ctx, conn, busid)
	if err != nil {
		s.fail("Attach Request for %s failed - %s\n", busid, opStatusText(err))
		s.reason(err)
		return false
	}
	_, err = s.controllers.Attach(s.ctx, conn.(syscall.Conn), control.Attach{
		Controller: ref, Port: control.AnyPort, DevID: info.DevID(), Speed: int(info.Speed),
		Remote: control.Remote{Host: host, Port: s.port, BusID: busid},
	})
	_, down := errors.AsType[*control.DialError](err)
	switch {
	case err == nil:
		return true
	case down, errors.Is(err, os.ErrNotExist):
		s.noController(err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, vhci.ErrNoFreePort):
		s.fail("no free port")
	default:
		s.fail("import device")
		s.info("%v", err)
	}
	return false
}

// opStatusText is what the stock tool says of a request that failed.
func opStatusText(err error) string {
	status, _ := errors.AsType[usbip.OpStatus](err)
	switch status {
	case usbip.OpFailed:
		return "Request Failed"
	case usbip.OpBusy:
		return "Device busy (exported)"
	case usbip.OpDevError:
		return "Device in error state"
	case usbip.OpNoDevice:
		return "Device not found"
	case usbip.OpOK, usbip.OpUnexpected: // no answer, or none that makes sense
		return "Unexpected response"
	}
	return "Unknown Op Common Status"
}

func (s *stock) detach(args []string) bool {
	var port, ref string
	f := pflag.NewFlagSet("detach", pflag.ContinueOnError)
	f.StringVarP(&port, "port", "p", "", "")
	f.StringVarP(&ref, "vhci-ix", "i", "0", "")
	if err := parse(f, args); err != nil || !f.Changed("port") {
		return s.usage(detachUsage)
	}
	if port == "" || strings.Trim(port, "0123456789") != "" {
		s.fail("invalid port %s", port)
		return false
	}
	ports, err := s.controllers.Ports(s.ctx, ref)
	if err != nil {
		s.noController(err)
		return false
	}
	number, err := strconv.Atoi(port)
	switch {
	case err != nil || number >= len(ports):
		s.fail("Invalid port %s > maxports %d", port, len(ports))
		return false
	case ports[number].Status == int(vhci.StatusNull):
		s.info("Port %d is already detached!\n", number)
		return true
	}
	if err := s.controllers.Detach(s.ctx, ref, number); err != nil {
		s.fail("Port %d detach request failed!\n", number)
		s.info("%v", err)
		return false
	}
	s.info("Port %d is now detached!\n", number)
	return true
}

func (s *stock) ports(args []string) bool {
	var ref string
	var all bool
	f := pflag.NewFlagSet("port", pflag.ContinueOnError)
	f.StringVarP(&ref, "vhci-ix", "i", "0", "")
	f.BoolVarP(&all, "all", "a", false, "")
	if err := parse(f, args); err != nil || f.NArg() > 0 {
		return s.usage(portUsage)
	}
	if err := s.printPorts(ref, all); err != nil {
		s.noController(err)
		s.fail("list imported devices")
		return false
	}
	return true
}

func (s *stock) printPorts(ref string, all bool) error {
	names := s.names()
	if !all {
		ports, err := s.controllers.Ports(s.ctx, ref)
		if err != nil {
			return err
		}
		s.printPortsHead()
		s.printPortsOf(ports, names)
		return nil
	}
	list, err := s.controllers.Controllers(s.ctx)
	if err != nil {
		return err
	}
	s.printPortsHead()
	for _, c := range list {
		ports, err := s.controllers.Ports(s.ctx, strconv.Itoa(c.Index))
		if errors.Is(err, syscall.ENOENT) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		title := fmt.Sprintf("VHCI: /sys/devices/platform/vhci_hcd.%d", c.Index)
		fmt.Fprintf(s.out, "%s\n%s\n", title, strings.Repeat("-", len(title)))
		s.printPortsOf(ports, names)
	}
	return nil
}

func (s *stock) printPortsHead() {
	fmt.Fprint(s.out, "Imported USB devices\n====================\n")
}

func (s *stock) printPortsOf(ports []control.Port, names *usb.Names) {
	for _, p := range ports {
		if p.Status == int(vhci.StatusNull) || p.Status == int(vhci.StatusNotAssigned) {
			continue
		}
		fmt.Fprintf(s.out, "Port %02d: <%s> at %s\n", p.Number, vhci.Status(p.Status), speedText(usb.Speed(p.Speed)))
		fmt.Fprintf(s.out, "       %s\n", productName(names, p.Vendor, p.Product))
		if r := p.Remote; r.BusID == "" {
			fmt.Fprintf(s.out, "%10s -> unknown host, remote port and remote busid\n", p.BusID)
		} else {
			fmt.Fprintf(s.out, "%10s -> usbip://%s:%s/%s\n", p.BusID, r.Host, r.Port, r.BusID)
		}
		fmt.Fprintf(s.out, "%10s -> remote bus/dev %03d/%03d\n", " ", p.DevID>>16, p.DevID&0xffff)
	}
}

func speedText(speed usb.Speed) string {
	switch speed {
	case usb.SpeedLow:
		return "Low Speed(1.5Mbps)"
	case usb.SpeedFull:
		return "Full Speed(12Mbps)"
	case usb.SpeedHigh:
		return "High Speed(480Mbps)"
	case usb.SpeedWireless:
		return "Wireless"
	case usb.SpeedSuper:
		return "Super Speed(5000Mbps)"
	case usb.SpeedSuperPlus:
		return "Super Speed Plus(10000Mbps)"
	}
	return "Unknown Speed"
}
