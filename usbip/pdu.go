package usbip

import (
	"encoding/binary"

	"github.com/usbns/usbns/usb"
)

// Sizes on the wire, in bytes.
const (
	HeaderSize    = 48 // of each of the four URB PDUs
	IsoPacketSize = 16 // of one descriptor of an isochronous transfer
)

// MaxIsoPackets is the largest number_of_packets that is accepted, the limit of
// Linux (USBIP_MAX_ISO_PACKETS in drivers/usb/usbip/usbip_common.h).
const MaxIsoPackets = 1024

// Command is the first field of a URB PDU.
type Command uint32

// The commands.
const (
	CommandSubmit    Command = 1 // USBIP_CMD_SUBMIT: importer to exporter
	CommandUnlink    Command = 2 // USBIP_CMD_UNLINK
	CommandRetSubmit Command = 3 // USBIP_RET_SUBMIT: exporter to importer
	CommandRetUnlink Command = 4 // USBIP_RET_UNLINK
)

// PeekCommand reads the command of a PDU of which at least four bytes are in b.
func PeekCommand(b []byte) Command { return Command(binary.BigEndian.Uint32(b)) }

// Directions on the wire.
const (
	DirOut = 0
	DirIn  = 1
)

// CmdSubmit asks for a transfer. The data of an OUT transfer follows it, then
// the packets of an isochronous one.
type CmdSubmit struct {
	Seq        uint32
	DevID      uint32
	Direction  uint32
	Endpoint   uint32 // number, without direction
	Flags      uint32
	Length     int32
	StartFrame int32
	Packets    int32 // without meaning but for isochronous transfers
	Interval   int32
	Setup      [8]byte // as on the bus
}

// Put encodes c into the first HeaderSize bytes of b.
func (c *CmdSubmit) Put(b []byte) {
	putHeader(b, CommandSubmit, c.Seq, c.DevID, c.Direction, c.Endpoint)
	binary.BigEndian.PutUint32(b[20:], c.Flags)
	binary.BigEndian.PutUint32(b[24:], uint32(c.Length))
	binary.BigEndian.PutUint32(b[28:], uint32(c.StartFrame))
	binary.BigEndian.PutUint32(b[32:], uint32(c.Packets))
	binary.BigEndian.PutUint32(b[36:], uint32(c.Interval))
	copy(b[40:HeaderSize], c.Setup[:])
}

// ParseCmdSubmit decodes the first HeaderSize bytes of b, whose command the
// caller has looked at. Nothing is checked.
func ParseCmdSubmit(b []byte) CmdSubmit {
	_ = b[HeaderSize-1]
	return CmdSubmit{
		Seq:        binary.BigEndian.Uint32(b[4:]),
		DevID:      binary.BigEndian.Uint32(b[8:]),
		Direction:  binary.BigEndian.Uint32(b[12:]),
		Endpoint:   binary.BigEndian.Uint32(b[16:]),
		Flags:      binary.BigEndian.Uint32(b[20:]),
		Length:     int32(binary.BigEndian.Uint32(b[24:])),
		StartFrame: int32(binary.BigEndian.Uint32(b[28:])),
		Packets:    int32(binary.BigEndian.Uint32(b[32:])),
		Interval:   int32(binary.BigEndian.Uint32(b[36:])),
		Setup:      [8]byte(b[40:]),
	}
}

// RetSubmit is the outcome of a transfer. The data of an IN transfer follows
// it, then the packets of an isochronous one.
type RetSubmit struct {
	Seq        uint32
	Status     int32
	Actual     int32
	StartFrame int32
	Packets    int32
	Errors     int32
}

// Put encodes r into the first HeaderSize bytes of b.
func (r *RetSubmit) Put(b []byte) {
	putHeader(b, CommandRetSubmit, r.Seq, 0, 0, 0)
	binary.BigEndian.PutUint32(b[20:], uint32(r.Status))
	binary.BigEndian.PutUint32(b[24:], uint32(r.Actual))
	binary.BigEndian.PutUint32(b[28:], uint32(r.StartFrame))
	binary.BigEndian.PutUint32(b[32:], uint32(r.Packets))
	binary.BigEndian.PutUint32(b[36:], uint32(r.Errors))
	clear(b[40:HeaderSize])
}

// ParseRetSubmit decodes the first HeaderSize bytes of b, whose command the
// caller has looked at. Nothing is checked.
func ParseRetSubmit(b []byte) RetSubmit {
	_ = b[HeaderSize-1]
	return RetSubmit{
		Seq:        binary.BigEndian.Uint32(b[4:]),
		Status:     int32(binary.BigEndian.Uint32(b[20:])),
		Actual:     int32(binary.BigEndian.Uint32(b[24:])),
		StartFrame: int32(binary.BigEndian.Uint32(b[28:])),
		Packets:    int32(binary.BigEndian.Uint32(b[32:])),
		Errors:     int32(binary.BigEndian.Uint32(b[36:])),
	}
}

// CmdUnlink asks for a transfer to be cancelled.
type CmdUnlink struct {
	Seq    uint32 // of this request
	DevID  uint32
	Unlink uint32 // Seq of the transfer
}

// Put encodes c into the first HeaderSize bytes of b.
func (c *CmdUnlink) Put(b []byte) {
	putHeader(b, CommandUnlink, c.Seq, c.DevID, 0, 0)
	binary.BigEndian.PutUint32(b[20:], c.Unlink)
	clear(b[24:HeaderSize])
}

// ParseCmdUnlink decodes the first HeaderSize bytes of b, whose command the
// caller has looked at.
func ParseCmdUnlink(b []byte) CmdUnlink {
	_ = b[HeaderSize-1]
	return CmdUnlink{
		Seq:    binary.BigEndian.Uint32(b[4:]),
		DevID:  binary.BigEndian.Uint32(b[8:]),
		Unlink: binary.BigEndian.Uint32(b[20:]),
	}
}

// RetUnlink answers a CmdUnlink: [usb.StatusCancelled] if the transfer was
// cancelled, and then no RetSubmit comes for it; 0 if it was over already, and
// then its RetSubmit came before.
type RetUnlink struct {
	Seq    uint32 // of the CmdUnlink
	Status int32
}

// Put encodes r into the first HeaderSize bytes of b.
func (r *RetUnlink) Put(b []byte) {
	putHeader(b, CommandRetUnlink, r.Seq, 0, 0, 0)
	binary.BigEndian.PutUint32(b[20:], uint32(r.Status))
	clear(b[24:HeaderSize])
}

// ParseRetUnlink decodes the first HeaderSize bytes of b, whose command the
// caller has looked at.
func ParseRetUnlink(b []byte) RetUnlink {
	_ = b[HeaderSize-1]
	return RetUnlink{
		Seq:    binary.BigEndian.Uint32(b[4:]),
		Status: int32(binary.BigEndian.Uint32(b[20:])),
	}
}

func putHeader(b []byte, c Command, seq, devid, direction, endpoint uint32) {
	_ = b[HeaderSize-1]
	binary.BigEndian.PutUint32(b, uint32(c))
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], devid)
	binary.BigEndian.PutUint32(b[12:], direction)
	binary.BigEndian.PutUint32(b[16:], endpoint)
}

// PutIsoPacket encodes a packet of an isochronous transfer into the first
// IsoPacketSize bytes of b. A request carries 0 for Actual and Status: Linux
// refuses one whose Actuals are not 0.
func PutIsoPacket(b []byte, p usb.IsoPacket) {
	_ = b[IsoPacketSize-1]
	binary.BigEndian.PutUint32(b, uint32(p.Offset))
	binary.BigEndian.PutUint32(b[4:], uint32(p.Length))
	binary.BigEndian.PutUint32(b[8:], uint32(p.Actual))
	binary.BigEndian.PutUint32(b[12:], uint32(p.Status))
}

// ParseIsoPacket decodes the first IsoPacketSize bytes of b. The numbers are
// not checked. With 32 bits, large ones become negative.
func ParseIsoPacket(b []byte) usb.IsoPacket {
	_ = b[IsoPacketSize-1]
	return usb.IsoPacket{
		Offset: int(binary.BigEndian.Uint32(b)),
		Length: int(binary.BigEndian.Uint32(b[4:])),
		Actual: int(binary.BigEndian.Uint32(b[8:])),
		Status: usb.Status(binary.BigEndian.Uint32(b[12:])),
	}
}
