package emulate

import "fmt"

// A KeyError tells of a character that the keyboard cannot type.
type KeyError struct {
	Char   rune
	Offset int // in bytes
}

func (e *KeyError) Error() string {
	return fmt.Sprintf("character %q at byte %d cannot be typed on a US keyboard", e.Char, e.Offset)
}

// A keyReport is a boot keyboard's input report (HID 1.11, appendix B.1):
// modifiers, a reserved byte, six keys that are down.
type keyReport [8]byte

const (
	modLeftShift = 0x02
	keyEnter     = 0x28
	ledCapsLock  = 0x02
)

// keyboardReport is the report descriptor of HID 1.11, appendix B.1, with the
// keys up to usage 0xdd.
var keyboardReport = []byte{
	0x05, 0x01, 0x09, 0x06, // a keyboard, from the generic desktop page
	0xa1, 0x01,
	0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01,
	0x75, 0x01, 0x95, 0x08, 0x81, 0x02, // eight modifiers, a bit each
	0x95, 0x01, 0x75, 0x08, 0x81, 0x01, // a byte of nothing
	0x95, 0x05, 0x75, 0x01, 0x05, 0x08, 0x19, 0x01, 0x29, 0x05,
	0x91, 0x02, // out: five LEDs
	0x95, 0x01, 0x75, 0x03, 0x91, 0x01, // and three bits of nothing
	0x95, 0x06, 0x75, 0x08, 0x15, 0x00, 0x26, 0xdd, 0x00,
	0x05, 0x07, 0x19, 0x00, 0x29, 0xdd, 0x81, 0x00, // six keys
	0xc0,
}

// punctuation lists what the keys from usage 0x2d on type, alone and with
// shift (HID usage tables, chapter 10). Usage 0x32 is on no US keyboard.
const (
	punctuation        = "-=[]\\\x00;'`,./"
	shiftedPunctuation = "_+{}|\x00:\"~<>?"
	shiftedDigits      = "!@#$%^&*()"
)

// typeText returns the reports of typing text and then Enter: every key goes
// down and up again. With Caps Lock on at the host, shift is the other way
// round for letters.
func typeText(text string, capsLock bool) ([][]byte, error) {
	reports := make([][]byte, 0, 2*len(text)+2)
	press := func(k keyReport) { reports = append(reports, k[:], make([]byte, len(k))) }
	for i, c := range text {
		k, ok := keyFor(c)
		if !ok {
			return nil, &KeyError{c, i}
		}
		if capsLock && k[2] <= 0x1d {
			k[0] ^= modLeftShift
		}
		press(k)
	}
	press(keyReport{2: keyEnter})
	return reports, nil
}

// keyFor finds the key for a character in a US layout.
func keyFor(c rune) (keyReport, bool) {
	switch {
	case c >= 'a' && c <= 'z':
		return keyReport{2: byte(c-'a') + 0x04}, true
	case c >= 'A' && c <= 'Z':
		return keyReport{modLeftShift, 2: byte(c-'A') + 0x04}, true
	case c >= '1' && c <= '9':
		return keyReport{2: byte(c-'1') + 0x1e}, true
	case c == '0':
		return keyReport{2: 0x27}, true
	case c == '\n' || c == '\r':
		return keyReport{2: keyEnter}, true
	case c == '\t':
		return keyReport{2: 0x2b}, true
	case c == ' ':
		return keyReport{2: 0x2c}, true
	case c == 0:
		return keyReport{}, false
	}
	for _, row := range []struct {
		chars string
		first byte
		mod   byte
	}{
		{punctuation, 0x2d, 0},
		{shiftedPunctuation, 0x2d, modLeftShift},
		{shiftedDigits, 0x1e, modLeftShift},
	} {
		for i, have := range row.chars {
			if have == c {
				return keyReport{row.mod, 2: row.first + byte(i)}, true
			}
		}
	}
	return keyReport{}, false
}
