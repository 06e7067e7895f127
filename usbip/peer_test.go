package usbip

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/usbns/usbns/usb"
)

// A peer is the other side of the role under test, written out by hand so
// that it can break every rule.
type peer struct {
	t    testing.TB
	conn net.Conn
	seq  uint32
}

// send ignores errors: the other side may have ended the connection already,
// which is what the test looks at.
func (p *peer) send(parts ...[]byte) { p.conn.Write(bytes.Join(parts, nil)) }

func (p *peer) recv(n int) []byte {
	p.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(p.conn, b); err != nil {
		p.t.Fatalf("reading %d bytes: %v", n, err)
	}
	return b
}

// recvHeader reads a message of that command.
func (p *peer) recvHeader(want Command) []byte {
	p.t.Helper()
	b := p.recv(HeaderSize)
	if c := PeekCommand(b); c != want {
		p.t.Fatalf("command %d, want %d", c, want)
	}
	return b
}

func (p *peer) recvRetSubmit() RetSubmit { return ParseRetSubmit(p.recvHeader(CommandRetSubmit)) }
func (p *peer) recvRetUnlink() RetUnlink { return ParseRetUnlink(p.recvHeader(CommandRetUnlink)) }
func (p *peer) recvCmdSubmit() CmdSubmit { return ParseCmdSubmit(p.recvHeader(CommandSubmit)) }
func (p *peer) recvCmdUnlink() CmdUnlink { return ParseCmdUnlink(p.recvHeader(CommandUnlink)) }

// control makes a control transfer and returns its answer.
func (p *peer) control(setup usb.Setup, data []byte) (RetSubmit, []byte) {
	p.t.Helper()
	p.seq++
	ep := usb.Address(0)
	if setup.In() {
		ep |= usb.DirIn
	}
	seq := 0x10000 + p.seq
	p.send(submitPDU(seq, ep, setup, data, int(setup.Length)))
	r := p.recvRetSubmit()
	if r.Seq != seq {
		p.t.Fatalf("answer for %d, want %d", r.Seq, seq)
	}
	if !setup.In() {
		return r, nil
	}
	return r, p.recv(int(r.Actual))
}

// works fails the test unless the exporter still answers.
func (p *peer) works() {
	p.t.Helper()
	r, data := p.control(usb.GetDescriptor(usb.DescDevice, 0, 0, 18), nil)
	if r.Status != 0 || !bytes.Equal(data, fakeDescriptors().Raw().Device) {
		p.t.Fatalf("after that a control transfer gives %+v, %x", r, data)
	}
}

func (p *peer) configure() {
	p.t.Helper()
	if r, _ := p.control(usb.SetConfiguration(1), nil); r.Status != 0 {
		p.t.Fatalf("SET_CONFIGURATION: %+v", r)
	}
}

// edit changes a 32-bit field of a PDU.
func edit(pdu []byte, offset int, value uint32) []byte {
	binary.BigEndian.PutUint32(pdu[offset:], value)
	return pdu
}

// Offsets of fields in URB PDUs.
const (
	atCommand   = 0
	atSeq       = 4
	atDevID     = 8
	atDirection = 12
	atEndpoint  = 16
	atLength    = 24
	atPackets   = 32
)

func unlinkPDU(seq, victim uint32) []byte {
	b := make([]byte, HeaderSize)
	c := CmdUnlink{Seq: seq, DevID: benchDevID, Unlink: victim}
	c.Put(b)
	return b
}

func retSubmitPDU(r RetSubmit, data []byte, packets ...usb.IsoPacket) []byte {
	b := make([]byte, HeaderSize)
	r.Put(b)
	return append(append(b, data...), isoPDU(packets...)...)
}

func retUnlinkPDU(seq uint32, status usb.Status) []byte {
	b := make([]byte, HeaderSize)
	r := RetUnlink{Seq: seq, Status: int32(status)}
	r.Put(b)
	return b
}

func isoPDU(packets ...usb.IsoPacket) []byte {
	b := make([]byte, len(packets)*IsoPacketSize)
	for i, p := range packets {
		PutIsoPacket(b[i*IsoPacketSize:], p)
	}
	return b
}

// isoSubmitPDU asks for an isochronous transfer.
func isoSubmitPDU(seq uint32, ep usb.Address, length int, data []byte, packets ...usb.IsoPacket) []byte {
	b := edit(submitPDU(seq, ep, usb.Setup{}, data, length), atPackets, uint32(len(packets)))
	return append(b, isoPDU(packets...)...)
}
