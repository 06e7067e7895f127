package policy

import "github.com/usbns/usbns/usb"

// Usage pages (HID Usage Tables 1.5, section 3) of which Linux makes nothing
// that types or turns off (hidinput_configure_usage in
// drivers/hid/hid-input.c).
func harmless(page uint16) bool {
	switch page {
	case 0x02, 0x03, 0x04, 0x05, // simulation, virtual reality, sport, game
		0x08,       // LEDs
		buttons,    // not all
		0x0d,       // digitizers
		0x0f,       // physical interfaces: force feedback
		0x14,       // displays of characters
		0x20,       // sensors
		0x40,       // medical instruments
		0x84, 0x85, // power supplies and batteries
		0x8c, 0x8d, 0x8e, // bar-code scanners, scales, magnetic stripe readers
		0xf1d0: // FIDO
		return true
	}
	return page >= 0xff00 && page != 0xff01 && page != 0xff7f // the vendor's own, but HP's
}

// genericDesktop is the one page that has both pointers and keyboards: what is
// below its keyboards, and its axes, are harmless.
const genericDesktop = 0x01

func harmlessDesktop(low, high uint32) bool {
	return low <= high && (high <= 0x05 || low >= 0x08 && high < 0x80)
}

// buttons is a page of which Linux makes keys by adding a usage to the code of a
// first button. Above mostButtons the sum can be a key that is no button: of usage
// 85 of a mouse it is KEY_POWER2.
const (
	buttons     = 0x09
	mostButtons = 0x30
)

// shifts tells whether a device is of those of which Linux takes what is there twice
// for keys of its own, with the next codes that are free, and does not look where
// that leads either (HID_QUIRK_INCREMENT_USAGE_ON_DUPLICATE in
// drivers/hid/hid-quirks.c, of 6.1 and 6.12). They are game controllers.
func shifts(d usb.DeviceDescriptor) bool {
	switch uint32(d.Vendor)<<16 | uint32(d.Product) {
	case 0x0079_0006, 0x06a3_0255, 0x06a3_075c, 0x06a3_0762, 0x06a3_0b6a, 0x27f8_0bbf, 0xf000_0003, 0xf000_00f1:
		return true
	}
	return false
}

// usages is a range of a report descriptor, on the page that was named with it
// or, if none was, on the one in force.
type usages struct {
	low, high uint32
	page      uint16 // in force when the usage was read
	extended  bool   // the usages have their page in their upper half
}

func (u usages) harmless(page uint16) bool {
	low, high := u.low, u.high
	if u.extended {
		if low>>16 != high>>16 {
			return false
		}
		page = uint16(low >> 16)
		low, high = low&0xffff, high&0xffff
	}
	switch page {
	case genericDesktop:
		return harmlessDesktop(low, high)
	case buttons:
		return low <= high && high <= mostButtons
	}
	return harmless(page) && low <= high
}

// canType reports whether a HID report descriptor (HID 1.11, section 6.2.2) has
// anything of which Linux might make a key that types or turns off. What it
// cannot read, it does not trust. Usages take the page of the main item they
// belong to; older kernels took that of their own place: both count.
func canType(report []byte) bool {
	p := reportParser{rest: report}
	for len(p.rest) > 0 {
		if !p.item() {
			return true
		}
	}
	return p.mains == 0
}

type reportParser struct {
	rest  []byte
	page  uint16
	saved []uint16 // by PUSH
	local []usages
	open  *usages // a range whose other end is to come
	mains int
}

// Item types and tags.
const (
	typeMain   = 0
	typeGlobal = 1
	typeLocal  = 2

	globalUsagePage = 0
	globalPush      = 10
	globalPop       = 11

	localUsage    = 0
	localMinimum  = 1
	localMaximum  = 2
	localDelimit  = 10
	maxSavedPages = 4   // HID_GLOBAL_STACK_SIZE
	maxUsages     = 256 // of one main item
)

// item reads one and reports whether it is harmless.
func (p *reportParser) item() bool {
	head := p.rest[0]
	size := []int{0, 1, 2, 4}[head&3]
	if head == 0xfe || len(p.rest) < 1+size { // a long item, which Linux does not take
		return false
	}
	var value uint32
	for i, b := range p.rest[1 : 1+size] {
		value |= uint32(b) << (8 * i)
	}
	p.rest = p.rest[1+size:]
	switch tag := head >> 4; head >> 2 & 3 {
	case typeMain:
		return p.main()
	case typeGlobal:
		return p.global(tag, value)
	case typeLocal:
		return p.usage(tag, value, size == 4)
	}
	return false
}

func (p *reportParser) main() bool {
	p.mains++
	if p.open != nil {
		return false
	}
	for _, u := range p.local {
		if !u.harmless(p.page) || !u.harmless(u.page) {
			return false
		}
	}
	p.local = p.local[:0]
	return true
}

func (p *reportParser) global(tag byte, value uint32) bool {
	switch tag {
	case globalUsagePage:
		p.page = uint16(value)
		return value <= 0xffff && (p.page == genericDesktop || harmless(p.page))
	case globalPush:
		p.saved = append(p.saved, p.page)
		return len(p.saved) <= maxSavedPages
	case globalPop:
		if len(p.saved) == 0 {
			return false
		}
		p.page = p.saved[len(p.saved)-1]
		p.saved = p.saved[:len(p.saved)-1]
	}
	return true
}

func (p *reportParser) usage(tag byte, value uint32, extended bool) bool {
	switch tag {
	case localUsage:
		p.local = append(p.local, usages{value, value, p.page, extended})
	case localMinimum:
		if p.open != nil {
			return false
		}
		p.open = &usages{value, 0, p.page, extended}
	case localMaximum:
		if p.open == nil || p.open.extended != extended || p.open.page != p.page {
			return false
		}
		p.open.high = value
		p.local = append(p.local, *p.open)
		p.open = nil
	case localDelimit:
		return false // alternatives, which nobody uses
	}
	return len(p.local) <= maxUsages
}
