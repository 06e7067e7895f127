package usb

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

const sampleNames = "# Vendors\n" +
	"\t0001  Product of nobody\n" +
	"\n" +
	"046d  Logitech, Inc.\n" +
	"\tc077  Mouse\r\n" +
	"\t\t01  Interface that is no product\n" +
	"\tzzzz  Not a number\n" +
	"1d6b  Linux Foundation\n" +
	"\t0002  2.0 root \xff hub\n" +
	"C 03  Human Interface Device\n" +
	"\t01  Boot Interface Subclass\n" +
	"\t\t01  Keyboard\n" +
	"\t\t02  Mouse\n" +
	"C 08  Mass Storage\n" +
	"\t06  SCSI\n" +
	"\t\t50  Bulk-Only\n" +
	"AT 0100  USB Undefined\n" +
	"\t07  Child of another list\n" +
	"BIAS 0  Not Applicable\n" +
	"\t0002  Child of a list with a word of four letters\n" +
	"ABC 1  Item of a list whose word could be a number\n" +
	"HID 21  HID\n" +
	"L 0009  English\n" +
	"\t01  US\n"

func TestNames(t *testing.T) {
	n, err := ReadNames(strings.NewReader(sampleNames))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, got, want string }{
		{"vendor", n.Vendor(0x046d), "Logitech, Inc."},
		{"unknown vendor", n.Vendor(0x0001), ""},
		{"product, carriage return cut", n.Product(0x046d, 0xc077), "Mouse"},
		{"product of another vendor", n.Product(0x1d6b, 0xc077), ""},
		{"product before any vendor", n.Product(0, 1), ""},
		{"child of another list is no product", n.Product(0, 2), ""},
		{"interface is no product", n.Product(0x046d, 1), ""},
		{"text that is not UTF-8", n.Product(0x1d6b, 2), "2.0 root \uFFFD hub"},
		{"class, subclass and protocol", className(n, 8, 6, 0x50), "Mass Storage / SCSI / Bulk-Only"},
		{"protocols of one subclass", className(n, 3, 1, 2), "Human Interface Device / Boot Interface Subclass / Mouse"},
		{"unknown protocol", className(n, 8, 6, 1), "Mass Storage / SCSI"},
		{"unknown subclass", className(n, 8, 1, 0x50), "Mass Storage"},
		{"subclass of another list", className(n, 8, 7, 0), "Mass Storage"},
		{"unknown class", className(n, 9, 0, 0), ""},
		{"other lists are no vendors", n.Vendor(0x0100) + n.Vendor(0x0abc) + n.Vendor(0x21) + n.Vendor(9), ""},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestNilNamesKnowNothing(t *testing.T) {
	var n *Names
	if got := n.Vendor(0x046d) + n.Product(0x046d, 0xc077) + className(n, 3, 1, 1); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestReadNamesRefuses(t *testing.T) {
	broken := errors.New("disk on fire")
	for name, r := range map[string]io.Reader{
		"a reader that fails": iotest.ErrReader(broken),
		"an endless line":     strings.NewReader(strings.Repeat("x", 1<<20)),
		"an endless text":     strings.NewReader(strings.Repeat("#\n", maxNamesBytes/2+1)),
	} {
		n, err := ReadNames(r)
		if n != nil || err == nil {
			t.Errorf("%s: got %v, %v", name, n, err)
		}
		if name == "a reader that fails" && !errors.Is(err, broken) {
			t.Errorf("%s: error %v hides the cause", name, err)
		}
	}
}

// className joins what is known of a class.
func className(n *Names, class, subclass, protocol uint8) string {
	c, s, p := n.Class(class, subclass, protocol)
	return strings.TrimRight(strings.Join([]string{c, s, p}, " / "), " /")
}
