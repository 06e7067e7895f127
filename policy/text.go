package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/usbns/usbns/usb"
)

// An ID names devices by what they say of themselves. Its text is
// vvvv:pppp or vvvv:pppp:SERIAL.
type ID struct {
	Vendor, Product uint16
	Serial          string // "" for any
}

func (id ID) names(d *usb.Descriptors) bool {
	dev := d.Device()
	return dev.Vendor == id.Vendor && dev.Product == id.Product && (id.Serial == "" || id.Serial == d.Serial())
}

func (id ID) String() string {
	s := fmt.Sprintf("%04x:%04x", id.Vendor, id.Product)
	if id.Serial != "" {
		s += ":" + id.Serial
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	f := strings.SplitN(string(text), ":", 3)
	if len(f) < 2 || len(f[0]) != 4 || len(f[1]) != 4 {
		return notID(string(text))
	}
	vendor, err1 := strconv.ParseUint(f[0], 16, 16)
	product, err2 := strconv.ParseUint(f[1], 16, 16)
	if err1 != nil || err2 != nil || len(f) == 3 && f[2] == "" {
		return notID(string(text))
	}
	*id = ID{Vendor: uint16(vendor), Product: uint16(product)}
	if len(f) == 3 {
		id.Serial = f[2]
	}
	return nil
}

func notID(text string) error {
	return fmt.Errorf("%.40q is no device: want VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL, four hex digits each", text)
}

// With returns the policy with rules added to it: words of classes, "all", and
// IDs. Classes that are denied go before those that are allowed, so that
// denying all and allowing one leaves that one.
func (p Policy) With(allow, deny []string) (Policy, error) {
	in, inIDs, err1 := parseRules(allow)
	out, outIDs, err2 := parseRules(deny)
	if err := errors.Join(err1, err2); err != nil {
		return Policy{}, err
	}
	p.Classes = p.Classes&^out | in
	p.Allow = append(p.Allow[:len(p.Allow):len(p.Allow)], inIDs...)
	p.Deny = append(p.Deny[:len(p.Deny):len(p.Deny)], outIDs...)
	return p, nil
}

func parseRules(rules []string) (classes Classes, ids []ID, err error) {
	for _, r := range rules {
		if strings.Contains(r, ":") {
			var id ID
			if err := id.UnmarshalText([]byte(r)); err != nil {
				return 0, nil, err
			}
			ids = append(ids, id)
			continue
		}
		c, err := parseClasses(r)
		if err != nil {
			return 0, nil, err
		}
		classes |= c
	}
	return classes, ids, nil
}

var speeds = []struct {
	word  string
	speed usb.Speed
}{
	{"low", usb.SpeedLow},
	{"full", usb.SpeedFull},
	{"high", usb.SpeedHigh},
	{"super", usb.SpeedSuper},
	{"super-plus", usb.SpeedSuperPlus},
}

// ParseSpeed reads the word for a speed: low, full, high, super or super-plus.
func ParseSpeed(word string) (usb.Speed, error) {
	for _, s := range speeds {
		if s.word == word {
			return s.speed, nil
		}
	}
	return 0, fmt.Errorf("%.40q is no speed: there are low, full, high, super, super-plus", word)
}

func speedWord(speed usb.Speed) string {
	for _, s := range speeds {
		if s.speed >= speed {
			return s.word
		}
	}
	return "super-plus"
}
