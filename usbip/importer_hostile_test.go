package usbip

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// An importedPeer is a hand-written exporter with the Importer it serves.
type importedPeer struct {
	peer
	imp *Importer
}

// importPeer starts past enumeration, configured.
func importPeer(t testing.TB, pair func(testing.TB) (net.Conn, net.Conn), opts ImportOptions) *importedPeer {
	t.Helper()
	conn, theirs := pair(t)
	opts.Descriptors = fakeDescriptors()
	i, err := NewImporter(t.Context(), theirs, benchDevID, usb.SpeedHigh, &opts)
	must.OK(t, err)
	i.endpoints.Observe(usb.SetConfiguration(1), usb.StatusOK)
	t.Cleanup(func() { conn.Close(); i.Close() })
	return &importedPeer{peer: peer{t: t, conn: conn}, imp: i}
}

// A submitted URB tells when it has completed, and how often.
type submitted struct {
	usb.URB
	done chan struct{}
}

func (p *importedPeer) submit(u usb.URB) *submitted {
	p.t.Helper()
	s := &submitted{URB: u, done: make(chan struct{})}
	s.Complete = func(*usb.URB) { close(s.done) } // a second call panics
	must.OK(p.t, p.imp.Submit(&s.URB))
	return s
}

func bulkInURB(n int) usb.URB {
	return usb.URB{Type: usb.Bulk, Endpoint: bulkIn, Buffer: make([]byte, n)}
}

func bulkOutURB(n int) usb.URB {
	return usb.URB{Type: usb.Bulk, Endpoint: bulkOut, Buffer: make([]byte, n)}
}

func isoInURB(lengths ...int) usb.URB {
	u := usb.URB{Type: usb.Isochronous, Endpoint: isoIn}
	n := 0
	for _, l := range lengths {
		u.Packets = append(u.Packets, usb.IsoPacket{Offset: n, Length: l})
		n += l
	}
	u.Buffer = make([]byte, n)
	return u
}

// works fails the test unless a transfer still succeeds.
func (p *importedPeer) works() {
	p.t.Helper()
	u := p.submit(bulkInURB(2))
	c := p.recvCmdSubmit()
	p.send(retSubmitPDU(RetSubmit{Seq: c.Seq, Actual: 2}, []byte("ok")))
	<-u.done
	if u.Status != usb.StatusOK || string(u.Buffer) != "ok" {
		p.t.Fatalf("after that a transfer ends with %v, %q", u.Status, u.Buffer)
	}
}

// TestImporterGivesUp lists answers after which nothing from the peer can be
// trusted. The URB in flight completes all the same, as a device that is gone.
func TestImporterGivesUp(t *testing.T) {
	const actual, packets = 24, 32 // offsets in a RET_SUBMIT
	answer := func(data int) func(uint32) []byte {
		return func(seq uint32) []byte {
			return retSubmitPDU(RetSubmit{Seq: seq, Actual: int32(data)}, make([]byte, data))
		}
	}
	edited := func(offset int, value uint32) func(uint32) []byte {
		return func(seq uint32) []byte { return edit(answer(0)(seq), offset, value) }
	}
	iso := func(r RetSubmit, data int, packets ...usb.IsoPacket) func(uint32) []byte {
		return func(seq uint32) []byte {
			r.Seq = seq
			return retSubmitPDU(r, make([]byte, data), packets...)
		}
	}
	tests := map[string]struct {
		urb    usb.URB
		answer func(seq uint32) []byte
		want   error
	}{
		"actual_length negative":                {bulkInURB(8), edited(actual, 0xffffffff), ErrProtocol},
		"actual_length over the buffer":         {bulkInURB(8), answer(9), ErrProtocol},
		"actual_length huge":                    {bulkInURB(8), edited(actual, 1<<31-1), ErrProtocol},
		"actual_length negative on OUT":         {bulkOutURB(8), edited(actual, 1<<31), ErrProtocol},
		"actual_length over the buffer on OUT":  {bulkOutURB(8), edited(actual, 9), ErrProtocol},
		"isochronous packets negative":          {isoInURB(8), edited(packets, 0xffffffff), ErrProtocol},
		"isochronous packets over those asked":  {isoInURB(8), iso(RetSubmit{Packets: 2}, 0, usb.IsoPacket{}, usb.IsoPacket{}), ErrProtocol},
		"isochronous packets times 16 wrap":     {isoInURB(8), edited(packets, 0x10000001), ErrProtocol},
		"isochronous packet over its length":    {isoInURB(4, 4), iso(RetSubmit{Actual: 8, Packets: 2}, 8, usb.IsoPacket{Length: 4, Actual: 5}, usb.IsoPacket{Offset: 4, Length: 4, Actual: 3}), ErrProtocol},
		"isochronous sum under actual_length":   {isoInURB(8), iso(RetSubmit{Actual: 8, Packets: 1}, 8, usb.IsoPacket{Length: 8, Actual: 7}), ErrProtocol},
		"isochronous sum over actual_length":    {isoInURB(8), iso(RetSubmit{Actual: 7, Packets: 1}, 7, usb.IsoPacket{Length: 8, Actual: 8}), ErrProtocol},
		"isochronous sum wraps":                 {isoInURB(8, 8), iso(RetSubmit{Actual: 4, Packets: 2}, 4, usb.IsoPacket{Actual: 8}, usb.IsoPacket{Actual: -4}), ErrProtocol},
		"isochronous data without packets":      {isoInURB(8), iso(RetSubmit{Actual: 8}, 8), ErrProtocol},
		"unknown sequence number":               {bulkInURB(8), func(seq uint32) []byte { return answer(0)(seq + 1) }, ErrProtocol},
		"sequence number 0":                     {bulkInURB(8), func(uint32) []byte { return answer(0)(0) }, ErrProtocol},
		"unknown command":                       {bulkInURB(8), edited(atCommand, 9), ErrProtocol},
		"a request as an answer":                {bulkInURB(8), func(seq uint32) []byte { return submitPDU(seq, bulkIn, usb.Setup{}, nil, 8) }, ErrProtocol},
		"text":                                  {bulkInURB(8), func(uint32) []byte { return bytes.Repeat([]byte("HTTP/1.1 "), 10) }, ErrProtocol},
		"end":                                   {bulkInURB(8), func(uint32) []byte { return nil }, io.EOF},
		"end inside a header":                   {bulkInURB(8), func(seq uint32) []byte { return answer(0)(seq)[:47] }, io.ErrUnexpectedEOF},
		"end inside a payload":                  {bulkInURB(8), func(seq uint32) []byte { return answer(8)(seq)[:HeaderSize+7] }, io.ErrUnexpectedEOF},
		"end inside a large payload":            {bulkInURB(1e5), func(seq uint32) []byte { return answer(1e5)(seq)[:50e3] }, io.ErrUnexpectedEOF},
		"end inside packets":                    {isoInURB(8), func(seq uint32) []byte { return edited(packets, 1)(seq) }, io.ErrUnexpectedEOF},
		"isochronous packets past their buffer": {isoInURB(8), iso(RetSubmit{Packets: 1}, 0, usb.IsoPacket{Offset: 1 << 30, Length: 1 << 30, Actual: 1 << 30}), ErrProtocol},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for kind, pair := range pairs {
				t.Run(kind, func(t *testing.T) {
					must.NotLeak(t)
					p := importPeer(t, pair, ImportOptions{})
					u := p.submit(tt.urb)
					go func() {
						c := p.recvCmdSubmit()
						if c.Direction == DirOut {
							p.recv(int(c.Length))
						}
						p.recv(int(c.Packets) * IsoPacketSize)
						p.send(tt.answer(c.Seq))
						if !errors.Is(tt.want, ErrProtocol) {
							p.conn.Close()
						}
					}()
					<-p.imp.Gone()
					select {
					case <-u.done:
					default:
						t.Fatal("Gone before the last Complete")
					}
					if u.Status != usb.StatusNoDevice || u.Actual != 0 {
						t.Errorf("transfer ended with %v, %d bytes", u.Status, u.Actual)
					}
					must.Is(t, p.imp.Err(), tt.want)
					must.Is(t, p.imp.Submit(&tt.urb), usb.ErrGone)
				})
			}
		})
	}
}

// TestImporterTolerates lists what servers do that other importers live with.
func TestImporterTolerates(t *testing.T) {
	cancelled := func(p *importedPeer, u *submitted) {
		p.t.Helper()
		<-u.done
		if u.Status != usb.StatusCancelled {
			p.t.Errorf("transfer ended with %v", u.Status)
		}
	}
	// cancel submits a transfer and cancels it; the peer has read both.
	cancel := func(p *importedPeer) (u *submitted, submit, unlink uint32) {
		p.t.Helper()
		u = p.submit(bulkInURB(8))
		submit = p.recvCmdSubmit().Seq
		p.imp.Cancel(&u.URB)
		c := p.recvCmdUnlink()
		if c.Unlink != submit {
			p.t.Fatalf("unlink of %d, want %d", c.Unlink, submit)
		}
		return u, submit, c.Seq
	}
	tests := map[string]func(*importedPeer){
		"packets -1 in a bulk answer": func(p *importedPeer) {
			u := p.submit(bulkInURB(8))
			p.send(retSubmitPDU(RetSubmit{Seq: p.recvCmdSubmit().Seq, Packets: -1, Actual: 1}, []byte{7}))
			<-u.done
			if u.Status != usb.StatusOK || u.Actual != 1 || u.Buffer[0] != 7 {
				p.t.Errorf("transfer ended with %v, %d bytes", u.Status, u.Actual)
			}
		},
		"a status that is no errno": func(p *importedPeer) {
			u := p.submit(bulkInURB(8))
			p.send(retSubmitPDU(RetSubmit{Seq: p.recvCmdSubmit().Seq, Status: 99}, nil))
			if <-u.done; u.Status != 99 {
				p.t.Errorf("transfer ended with %v", u.Status)
			}
		},
		"OUT data sent back": func(p *importedPeer) {
			for _, n := range []int{5, 48, 1000, 40e3} {
				u := p.submit(bulkOutURB(n))
				seq := p.recvCmdSubmit().Seq
				p.recv(n)
				p.send(retSubmitPDU(RetSubmit{Seq: seq, Actual: int32(n)}, bytes.Repeat([]byte{0xaa}, n)))
				<-u.done
				p.works()
			}
		},
		"fewer isochronous packets than asked": func(p *importedPeer) {
			u := p.submit(isoInURB(4, 4))
			seq := p.recvCmdSubmit().Seq
			p.recv(2 * IsoPacketSize)
			p.send(retSubmitPDU(RetSubmit{Seq: seq, Actual: 2, Packets: 1}, []byte("ab"), usb.IsoPacket{Actual: 2}))
			<-u.done
			if u.Packets[0].Actual != 2 || u.Packets[1].Actual != 0 || u.Packets[1].Status != usb.StatusXDev {
				p.t.Errorf("packets %+v", u.Packets)
			}
		},
		"devid, direction and endpoint in an answer": func(p *importedPeer) {
			u := p.submit(bulkInURB(8))
			b := retSubmitPDU(RetSubmit{Seq: p.recvCmdSubmit().Seq, Actual: 1}, []byte{7})
			p.send(edit(edit(edit(b, atDevID, 7), atDirection, 99), atEndpoint, 16))
			if <-u.done; u.Status != usb.StatusOK || u.Actual != 1 {
				p.t.Errorf("transfer ended with %v, %d bytes", u.Status, u.Actual)
			}
		},
		"sequence numbers at their end": func(p *importedPeer) {
			p.imp.mu.Lock()
			p.imp.seq = 1<<32 - 2
			p.imp.mu.Unlock()
			p.works()
			p.works()
			if p.imp.seq != 1 { // 0 is none
				p.t.Errorf("the number after the last is %d", p.imp.seq)
			}
		},
		"RET_UNLINK for nothing": func(p *importedPeer) { p.send(retUnlinkPDU(1234, usb.StatusCancelled)) },
		"RET_UNLINK with the number of a submit": func(p *importedPeer) {
			u := p.submit(bulkInURB(8))
			seq := p.recvCmdSubmit().Seq
			p.send(retUnlinkPDU(seq, usb.StatusCancelled), retSubmitPDU(RetSubmit{Seq: seq}, nil))
			if <-u.done; u.Status != usb.StatusOK {
				p.t.Errorf("transfer ended with %v", u.Status)
			}
		},
		"cancelled": func(p *importedPeer) {
			u, _, unlink := cancel(p)
			p.send(retUnlinkPDU(unlink, usb.StatusCancelled))
			cancelled(p, u)
		},
		"cancelled, with ENOENT": func(p *importedPeer) {
			u, _, unlink := cancel(p)
			p.send(retUnlinkPDU(unlink, usb.StatusUnlinked))
			if <-u.done; u.Status != usb.StatusUnlinked {
				p.t.Errorf("transfer ended with %v", u.Status)
			}
		},
		"RET_UNLINK twice": func(p *importedPeer) {
			u, _, unlink := cancel(p)
			p.send(retUnlinkPDU(unlink, usb.StatusCancelled), retUnlinkPDU(unlink, usb.StatusCancelled))
			cancelled(p, u)
		},
		"over before it was cancelled": func(p *importedPeer) {
			u, submit, unlink := cancel(p)
			p.send(retSubmitPDU(RetSubmit{Seq: submit, Actual: 3}, []byte("abc")), retUnlinkPDU(unlink, 0))
			if <-u.done; u.Status != usb.StatusOK || u.Actual != 3 {
				p.t.Errorf("transfer ended with %v, %d bytes", u.Status, u.Actual)
			}
		},
		"over, and then cancelled as well": func(p *importedPeer) {
			u, submit, unlink := cancel(p)
			p.send(retSubmitPDU(RetSubmit{Seq: submit}, nil), retUnlinkPDU(unlink, usb.StatusCancelled))
			if <-u.done; u.Status != usb.StatusOK {
				p.t.Errorf("transfer ended with %v", u.Status)
			}
		},
		"over, and the unlink never answered": func(p *importedPeer) {
			u, submit, _ := cancel(p)
			p.send(retSubmitPDU(RetSubmit{Seq: submit}, nil))
			<-u.done
		},
		"RET_UNLINK with the outcome in place of a RET_SUBMIT": func(p *importedPeer) {
			u, _, unlink := cancel(p)
			p.send(retUnlinkPDU(unlink, usb.StatusStall))
			if <-u.done; u.Status != usb.StatusStall {
				p.t.Errorf("transfer ended with %v", u.Status)
			}
		},
		"RET_UNLINK 0 without a RET_SUBMIT": func(p *importedPeer) {
			for range 2 * maxLate {
				u, _, unlink := cancel(p)
				p.send(retUnlinkPDU(unlink, 0))
				cancelled(p, u)
			}
		},
		"RET_UNLINK 0 ahead of the RET_SUBMIT": func(p *importedPeer) {
			u, submit, unlink := cancel(p)
			p.send(retUnlinkPDU(unlink, 0))
			cancelled(p, u)
			p.send(retSubmitPDU(RetSubmit{Seq: submit, Actual: 8}, make([]byte, 8)))
		},
		"cancelled twice": func(p *importedPeer) {
			u, _, unlink := cancel(p)
			p.imp.Cancel(&u.URB)
			p.send(retUnlinkPDU(unlink, usb.StatusCancelled))
			cancelled(p, u)
			p.imp.Cancel(&u.URB) // no longer in flight
		},
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			for kind, pair := range pairs {
				t.Run(kind, func(t *testing.T) {
					must.NotLeak(t)
					p := importPeer(t, pair, ImportOptions{})
					script(p)
					p.works()
					p.imp.mu.Lock()
					defer p.imp.mu.Unlock()
					if n := len(p.imp.requests) - len(p.imp.late); n != 0 || p.imp.inFlight != 0 || p.imp.bytes != 0 {
						t.Errorf("%d requests, %d URBs, %d bytes are left", n, p.imp.inFlight, p.imp.bytes)
					}
					if n := len(p.imp.late); n > maxLate {
						t.Errorf("%d late answers are expected", n)
					}
				})
			}
		})
	}
}
