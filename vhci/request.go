package vhci

import (
	"bytes"
	"errors"
	"math"
	"strconv"

	"github.com/usbns/usbns/usb"
)

// An AttachRequest is what is written to the file attach.
type AttachRequest struct {
	Port   int
	SockFD int       // of the writer: a connected stream socket past the import
	DevID  uint32    // the device at its exporter: busnum << 16 | devnum
	Speed  usb.Speed // chooses the half: see [Geometry.Landing]
}

// AppendAttach appends the text of r to dst.
func AppendAttach(dst []byte, r AttachRequest) []byte {
	dst = append(strconv.AppendInt(dst, int64(r.Port), 10), ' ')
	dst = append(strconv.AppendInt(dst, int64(r.SockFD), 10), ' ')
	dst = append(strconv.AppendUint(dst, uint64(r.DevID), 10), ' ')
	return strconv.AppendUint(dst, uint64(r.Speed), 10)
}

// ParseAttach parses what was written to attach by the rules of the kernel's
// sscanf("%u %u %u %u"): any white space before a number, none needed after the
// last, and whatever follows it is ignored. A sign is refused.
//
// It refuses numbers the kernel would wrap around to others: a port of 2^32 is
// not port 0. It also refuses what the kernel refuses next, and with the same
// EINVAL: no descriptor is above 2^31-1, and no speed is outside 1 to 6. Whether
// the port exists is for the caller to say.
func ParseAttach(text []byte) (AttachRequest, error) {
	var n [4]uint32
	rest := untilNUL(text)
	for i, what := range [...]string{"port", "sockfd", "devid", "speed"} {
		var err error
		if n[i], rest, err = scanUint(rest); err != nil {
			return AttachRequest{}, syntaxf("attach: %s: %v in %.40q, want \"port sockfd devid speed\"", what, err, text)
		}
	}
	speed := usb.Speed(min(n[3], math.MaxUint8))
	switch {
	case n[0] > math.MaxInt32:
		return AttachRequest{}, syntaxf("attach: there is no port %d", n[0])
	case n[1] > math.MaxInt32:
		return AttachRequest{}, syntaxf("attach: %d is no descriptor", n[1])
	case !speed.Valid():
		return AttachRequest{}, syntaxf("attach: %d is no speed: 1 (low) to 6 (super-plus)", n[3])
	}
	return AttachRequest{Port: int(n[0]), SockFD: int(n[1]), DevID: n[2], Speed: speed}, nil
}

// AppendDetach appends what is written to the file detach.
func AppendDetach(dst []byte, port int) []byte {
	return strconv.AppendInt(dst, int64(port), 10)
}

// ParseDetach parses what was written to detach by the rules of the kernel's
// kstrtoint: one decimal number, with or without a newline after it, and nothing
// else. Whether the port exists is for the caller to say.
func ParseDetach(text []byte) (port int, err error) {
	number := bytes.TrimSuffix(untilNUL(text), []byte("\n"))
	n, err := strconv.ParseInt(string(number), 10, 32)
	if err != nil || n < 0 {
		return 0, syntaxf("detach: %.40q is no port", text)
	}
	return int(n), nil
}

// untilNUL cuts text where a C string would end.
func untilNUL(text []byte) []byte {
	text, _, _ = bytes.Cut(text, []byte{0})
	return text
}

// scanUint is one %u of the kernel's sscanf, and what follows it.
func scanUint(s []byte) (uint32, []byte, error) {
	for len(s) > 0 && isSpace(s[0]) {
		s = s[1:]
	}
	end := 0
	for end < len(s) && '0' <= s[end] && s[end] <= '9' {
		end++
	}
	if end == 0 {
		return 0, s, errNoNumber
	}
	n, err := strconv.ParseUint(string(s[:end]), 10, 32)
	if err != nil {
		return 0, s, errTooLarge
	}
	return uint32(n), s[end:], nil
}

var (
	errNoNumber = errors.New("no number")
	errTooLarge = errors.New("a number above 2^32-1")
)

// isSpace is isspace of the kernel's lib/ctype.c, which is Latin-1.
func isSpace(c byte) bool {
	return '\t' <= c && c <= '\r' || c == ' ' || c == 0xa0
}
