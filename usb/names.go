package usb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxNamesBytes is about ten times what usb.ids has grown to in 25 years.
const maxNamesBytes = 8 << 20

// Names knows what people call vendors, products and classes: the contents of
// usb.ids, which most distributions install with their USB tools. A nil *Names
// works and knows nothing. It is immutable and safe for concurrent use.
type Names struct {
	vendors  map[uint16]string
	products map[uint32]string // vendor<<16 | product
	classes  map[classKey]string
}

// classKey is a class, a subclass of it or a protocol of that, by depth.
type classKey struct{ depth, class, subclass, protocol uint8 }

// ReadNames reads the text of usb.ids. Lines it does not understand, and the
// lists of other things than vendors and classes, are passed over, since the
// format has grown new lists before.
func ReadNames(r io.Reader) (*Names, error) {
	n := &Names{
		vendors:  make(map[uint16]string),
		products: make(map[uint32]string),
		classes:  make(map[classKey]string),
	}
	limited := &io.LimitedReader{R: r, N: maxNamesBytes + 1}
	lines := bufio.NewScanner(limited)
	add := ignore
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), " \r")
		if line == "" || line[0] == '#' {
			continue
		}
		text := strings.TrimLeft(line, "\t")
		depth := len(line) - len(text)
		if depth == 0 {
			add, text = n.list(text)
		}
		id, name, found := strings.Cut(text, " ")
		if number, err := strconv.ParseUint(id, 16, 16); found && err == nil {
			add(depth, uint16(number), strings.ToValidUTF8(strings.TrimSpace(name), "\uFFFD"))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read USB names: %w", err)
	}
	if limited.N == 0 {
		return nil, errors.New("read USB names: more than " + strconv.Itoa(maxNamesBytes>>20) + " MiB, which is no usb.ids")
	}
	return n, nil
}

// An adder takes the entry of one line: how far it is indented, its number and
// its name.
type adder func(depth int, id uint16, name string)

func ignore(int, uint16, string) {}

// list tells from a line that is not indented which list it belongs to, and
// returns the line's number and name. Vendors have four digits and no keyword;
// classes have the keyword C.
func (n *Names) list(line string) (adder, string) {
	keyword, rest, _ := strings.Cut(line, " ")
	switch {
	case keyword == "C":
		return n.addClass(), rest
	case isVendorID(keyword):
		return n.addVendor(), line
	}
	return ignore, ""
}

func isVendorID(s string) bool {
	_, err := strconv.ParseUint(s, 16, 16)
	return err == nil && len(s) == 4
}

func (n *Names) addVendor() adder {
	var vendor uint16
	return func(depth int, id uint16, name string) {
		switch depth {
		case 0:
			vendor = id
			n.vendors[id] = name
		case 1:
			n.products[uint32(vendor)<<16|uint32(id)] = name
		}
	}
}

func (n *Names) addClass() adder {
	var at classKey
	return func(depth int, id uint16, name string) {
		if id > 0xff {
			return
		}
		switch depth {
		case 0:
			at = classKey{0, uint8(id), 0, 0}
		case 1:
			at = classKey{1, at.class, uint8(id), 0}
		case 2:
			at = classKey{2, at.class, at.subclass, uint8(id)}
		default:
			return
		}
		n.classes[at] = name
	}
}

// Vendor returns the name of a vendor, "" if it is unknown.
func (n *Names) Vendor(id uint16) string {
	if n == nil {
		return ""
	}
	return n.vendors[id]
}

// Product returns the name of a vendor's product, without the vendor's, "" if
// it is unknown.
func (n *Names) Product(vendor, product uint16) string {
	if n == nil {
		return ""
	}
	return n.products[uint32(vendor)<<16|uint32(product)]
}

// Class returns the names of a class, of its subclass and of that one's
// protocol, each "" if it is unknown.
func (n *Names) Class(class, subclass, protocol uint8) (string, string, string) {
	if n == nil {
		return "", "", ""
	}
	return n.classes[classKey{0, class, 0, 0}],
		n.classes[classKey{1, class, subclass, 0}],
		n.classes[classKey{2, class, subclass, protocol}]
}
