package emulate

import "github.com/usbns/usbns/usb"

// messages is what a device has to say on an IN endpoint, message by message.
// A message ends with a packet that is not full, an empty one if need be, as
// far as the host asks for it.
type messages struct {
	maxPacket int
	list      [][]byte
	sent      int // of the first one
}

func (m *messages) add(b []byte) { m.list = append(m.list, b) }

func (m *messages) empty() bool { return len(m.list) == 0 }

func (m *messages) clear() { m.list, m.sent = nil, 0 }

// in fills a transfer with a message or as much of it as it asks for.
func (m *messages) in(u *usb.URB) (done bool) {
	if m.empty() {
		return false
	}
	rest := m.list[0][m.sent:]
	u.Actual = copy(u.Buffer, rest)
	m.sent += u.Actual
	full := u.Actual == len(u.Buffer)
	switch odd := u.Actual % m.maxPacket; {
	case u.Actual < len(rest) && odd != 0: // the bus carries whole packets
		u.Status = usb.StatusOverflow
		m.sent += min(m.maxPacket-odd, len(rest)-u.Actual)
	case u.Actual < len(rest), full && odd == 0 && u.Actual > 0:
		return true // the rest, or the empty packet, comes with the next transfer
	}
	if m.sent == len(m.list[0]) {
		m.list, m.sent = m.list[1:], 0
	}
	return true
}
