package vhci

import (
	"bytes"
	"strconv"

	"github.com/usbns/usbns/usb"
)

// Status is the state of a device at the exporter or of a port at the importer,
// numbered as enum usbip_device_status in drivers/usb/usbip/usbip_common.h.
type Status uint8

// The first three are of an exported device, the file usbip_status of
// usbip-host. The rest are of a port.
const (
	StatusDeviceAvailable Status = 1
	StatusDeviceUsed      Status = 2
	StatusDeviceError     Status = 3
	StatusNull            Status = 4 // free
	StatusNotAssigned     Status = 5 // attached, the device has no address yet
	StatusUsed            Status = 6
	StatusError           Status = 7
)

var statusTexts = [...]string{
	StatusDeviceAvailable: "Device Available",
	StatusDeviceUsed:      "Device in Use",
	StatusDeviceError:     "Device Error",
	StatusNull:            "Port Available",
	StatusNotAssigned:     "Port Initializing",
	StatusUsed:            "Port in Use",
	StatusError:           "Port Error",
}

// String returns the words of the stock tools.
func (s Status) String() string {
	if int(s) < len(statusTexts) && statusTexts[s] != "" {
		return statusTexts[s]
	}
	return "Unknown Status"
}

// A Port is a line of a status file.
type Port struct {
	Number int // among all ports behind the directory
	Hub    Hub
	Status Status

	// What is attached. The text has it for StatusUsed only.
	Speed  usb.Speed
	DevID  uint32 // the device at its exporter: busnum << 16 | devnum
	SockFD int    // in the table of the process that attached; -1 once it is being detached
	BusID  string // of the device on this machine, such as "3-1"
}

// Free reports whether a device can be attached.
func (p Port) Free() bool { return p.Status == StatusNull }

const (
	statusHeader = "hub port sta spd dev      sockfd local_busid\n"
	idleColumns  = "000 00000000 000000 0-0"
	minPortLine  = len("hs  0000 004 " + idleColumns + "\n")
	// What a controller that never started prints in place of idleColumns.
	notReadyColumns = "000 00000000 0000000000000000 0-0"
	// maxBusID is SYSFS_BUS_ID_SIZE of the stock tools, less the NUL.
	maxBusID = 31
)

// AppendStatus appends the text of a status file to dst. Ports that are not in
// use print nothing of what is attached, as in the kernel, so a caller can leave
// those fields as they are. It allocates only to grow dst.
func AppendStatus(dst []byte, ports []Port) []byte {
	dst = append(dst, statusHeader...)
	for i := range ports {
		dst = appendPort(dst, &ports[i])
	}
	return dst
}

func appendPort(dst []byte, p *Port) []byte {
	dst = append(dst, p.Hub.String()...)
	dst = append(dst, ' ', ' ')
	dst = append(appendPadded(dst, uint64(p.Number), 10, 4), ' ')
	dst = append(appendPadded(dst, uint64(p.Status), 10, 3), ' ')
	if p.Status != StatusUsed {
		dst = append(dst, idleColumns...)
		return append(dst, '\n')
	}
	dst = append(appendPadded(dst, uint64(p.Speed), 10, 3), ' ')
	dst = append(appendPadded(dst, uint64(p.DevID), 16, 8), ' ')
	dst = append(appendPadded(dst, uint64(uint32(p.SockFD)), 10, 6), ' ')
	if p.BusID == "" {
		dst = append(dst, "0-0"...)
	} else {
		dst = append(dst, p.BusID...)
	}
	return append(dst, '\n')
}

func appendPadded(dst []byte, v uint64, base, width int) []byte {
	var digits [20]byte
	d := strconv.AppendUint(digits[:0], v, base)
	for range width - len(d) {
		dst = append(dst, '0')
	}
	return append(dst, d...)
}

// ParseStatus parses the text of a status file. It takes what [AppendStatus]
// prints, and the wider line of a controller that never started, and nothing
// else; which ports there are is not its business. Its memory is bounded by a
// small multiple of the text.
//
// A Status number that has no name is kept: whatever it means, the port is
// neither free nor in use.
func ParseStatus(text []byte) ([]Port, error) {
	body, ok := bytes.CutPrefix(text, []byte(statusHeader))
	if !ok {
		return nil, syntaxf("status: the header is missing in %.60q", text)
	}
	ports := make([]Port, 0, len(body)/minPortLine)
	for n := 2; len(body) > 0; n++ {
		line, rest, ok := bytes.Cut(body, []byte("\n"))
		if !ok {
			return nil, syntaxf("status: line %d is cut short: %.80q", n, line)
		}
		p, ok := parsePort(line)
		if !ok {
			return nil, syntaxf("status: line %d is not a port: %.80q", n, line)
		}
		ports = append(ports, p)
		body = rest
	}
	return ports, nil
}

// parsePort is strict by comparison: what prints differently was not a port.
func parsePort(line []byte) (Port, bool) {
	if head, ok := bytes.CutSuffix(line, []byte(notReadyColumns)); ok {
		p, ok := parsePort(append(head[:len(head):len(head)], idleColumns...))
		return p, ok && p.Status == StatusNotAssigned
	}

	f := bytes.Fields(line)
	if len(f) != 7 {
		return Port{}, false
	}
	number, err1 := strconv.ParseUint(string(f[1]), 10, 31)
	status, err2 := strconv.ParseUint(string(f[2]), 10, 8)
	speed, err3 := strconv.ParseUint(string(f[3]), 10, 8)
	devid, err4 := strconv.ParseUint(string(f[4]), 16, 32)
	sockfd, err5 := strconv.ParseUint(string(f[5]), 10, 32)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil {
		return Port{}, false
	}
	p := Port{
		Number: int(number),
		Status: Status(status),
		Speed:  usb.Speed(speed),
		DevID:  uint32(devid),
		SockFD: int(int32(sockfd)), // printed with %u, whatever it is
	}
	if string(f[0]) == HubSuper.String() {
		p.Hub = HubSuper
	}
	if busid := string(f[6]); busid != "0-0" {
		if !validBusID(busid) {
			return Port{}, false
		}
		p.BusID = busid
	}
	if p.Status == StatusUsed && !p.Speed.Valid() {
		return Port{}, false
	}

	var buf [128]byte
	printed := appendPort(buf[:0], &p)
	return p, bytes.Equal(printed[:len(printed)-1], line)
}

// validBusID reports whether s names a device as the kernel does, BUS-PORT or
// BUS-PORT.PORT..., and so is safe as the name of a file.
func validBusID(s string) bool {
	if len(s) > maxBusID {
		return false
	}
	separators := "-"
	digits := 0
	for _, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9':
			digits++
		case digits > 0 && c == separators[0]:
			separators, digits = ".", 0
		default:
			return false
		}
	}
	return separators == "." && digits > 0
}
