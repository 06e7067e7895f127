package usbip

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// A servedPeer is a hand-written importer with the session that serves it.
type servedPeer struct {
	peer
	dev   *fakeDevice
	ended chan error
}

func servePeer(t testing.TB, conn, theirs net.Conn, opts *ServeOptions) *servedPeer {
	p := &servedPeer{peer: peer{t: t, conn: conn}, dev: newFakeDevice(), ended: make(chan error, 1)}
	go func() { p.ended <- ServeDevice(t.Context(), theirs, benchDevID, p.dev, opts) }()
	p.configure()
	return p
}

// end waits for the session and checks what it left behind.
func (p *servedPeer) end() error {
	p.t.Helper()
	err := <-p.ended
	if p.dev.resetCount() != 1 {
		p.t.Errorf("%d resets of the device after the session, want 1", p.dev.resetCount())
	}
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	if n := len(p.dev.waiting); n != 0 {
		p.t.Errorf("%d transfers left at the device", n)
	}
	return err
}

// hostileLimits are small, so that tests reach them.
var hostileLimits = &ServeOptions{Limits: Limits{URBs: 8, Bytes: 64e3}}

// TestSessionEnds lists what makes an exporter end the connection: where it
// cannot know what the following bytes mean, and where no honest importer
// would go.
func TestSessionEnds(t *testing.T) {
	in := func() []byte { return submitPDU(1, intrIn, usb.Setup{}, nil, 8) }
	iso := func(packets uint32) []byte {
		return edit(submitPDU(1, isoIn, usb.Setup{}, nil, 192), atPackets, packets)
	}
	tests := map[string]struct {
		input []byte
		want  error
	}{
		"length negative, IN":               {edit(in(), atLength, 0xffffffff), ErrProtocol},
		"length negative, OUT":              {edit(submitPDU(1, bulkOut, usb.Setup{}, nil, 8), atLength, 1<<31), ErrProtocol},
		"direction unknown":                 {edit(in(), atDirection, 2), ErrProtocol},
		"wrong devid in a submit":           {edit(in(), atDevID, 7), ErrProtocol},
		"wrong devid in an unlink":          {edit(unlinkPDU(2, 1), atDevID, 7), ErrProtocol},
		"sequence number twice in flight":   {append(in(), in()...), ErrProtocol},
		"isochronous packets negative":      {iso(0xffffffff), ErrProtocol},
		"isochronous packets over 1024":     {iso(1025), ErrProtocol},
		"isochronous packets times 16 wrap": {iso(0x10000001), ErrProtocol},
		"command 0":                         {make([]byte, HeaderSize), ErrProtocol},
		"command 5":                         {edit(in(), atCommand, 5), ErrProtocol},
		"command out of range":              {edit(in(), atCommand, 0xffffffff), ErrProtocol},
		"a reply as a request":              {retSubmitPDU(RetSubmit{Seq: 1}, nil), ErrProtocol},
		"another reply as a request":        {retUnlinkPDU(1, 0), ErrProtocol},
		"an operation once more":            {append(OpHeader{Version: Version, Code: OpReqDevlist}.Append(nil), make([]byte, 48)...), ErrProtocol},
		"partial header":                    {in()[:20], io.ErrUnexpectedEOF},
		"trailing byte":                     {append(submitPDU(1, 0x80, usb.Setup{RequestType: 0x80}, nil, 0), 0), io.ErrUnexpectedEOF},
		"end inside a payload":              {submitPDU(1, bulkOut, usb.Setup{}, make([]byte, 10), 64), io.ErrUnexpectedEOF},
		"end inside a refused payload":      {submitPDU(1, 0x0e, usb.Setup{}, make([]byte, 10), 64), io.ErrUnexpectedEOF},
		"end inside packets":                {append(iso(2), make([]byte, 17)...), io.ErrUnexpectedEOF},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for kind, pair := range pairs {
				t.Run(kind, func(t *testing.T) {
					must.NotLeak(t)
					conn, theirs := pair(t)
					p := servePeer(t, conn, theirs, hostileLimits)
					go io.Copy(io.Discard, conn)
					p.send(tt.input)
					if errors.Is(tt.want, io.ErrUnexpectedEOF) {
						closeWrite(conn)
					}
					// Who writes may see the end first.
					if err := p.end(); !errors.Is(err, tt.want) && !errors.Is(err, io.ErrClosedPipe) {
						t.Errorf("session ended with %v, want %v", err, tt.want)
					}
				})
			}
		})
	}
}

// closeWrite ends what conn sends, and leaves it open for answers where it can
// be: TCP makes a reset of an end with answers unread.
func closeWrite(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.CloseWrite()
		return
	}
	conn.Close()
}

// pairs are the kinds of connections: one whose socket is used directly, and
// one that is only known by its methods.
var pairs = map[string]func(testing.TB) (net.Conn, net.Conn){
	"tcp":  tcpPair,
	"pipe": func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() },
}

// TestSessionRefuses lists requests that fail by themselves: what belongs to
// them is read, and the next one works.
func TestSessionRefuses(t *testing.T) {
	iso := func(packets ...usb.IsoPacket) []byte { return isoSubmitPDU(1, isoIn, 192, nil, packets...) }
	setup := func(kind byte, length uint16) usb.Setup {
		return usb.Setup{RequestType: kind, Request: 1, Length: length}
	}
	tests := map[string]struct {
		input []byte
		want  usb.Status
	}{
		"unknown endpoint, IN":                            {submitPDU(1, 0x8e, usb.Setup{}, nil, 8), usb.StatusStall},
		"unknown endpoint, OUT":                           {submitPDU(1, 0x0e, usb.Setup{}, make([]byte, 5000), 5000), usb.StatusStall},
		"endpoint of another setting":                     {submitPDU(1, altIn, usb.Setup{}, nil, 8), usb.StatusStall},
		"endpoint 16":                                     {edit(submitPDU(1, 0x01, usb.Setup{}, make([]byte, 8), 8), atEndpoint, 16), usb.StatusStall},
		"endpoint out of range":                           {edit(submitPDU(1, 0x01, usb.Setup{}, make([]byte, 8), 8), atEndpoint, 0xffffffff), usb.StatusStall},
		"length huge, IN":                                 {submitPDU(1, bulkIn, usb.Setup{}, nil, 1<<31-1), usb.StatusNoMemory},
		"length over the cap, IN":                         {submitPDU(1, bulkIn, usb.Setup{}, nil, 64e3), usb.StatusNoMemory},
		"length over the cap, OUT":                        {submitPDU(1, bulkOut, usb.Setup{}, make([]byte, 100e3), 100e3), usb.StatusNoMemory},
		"control length is not the setup's":               {submitPDU(1, 0x80, setup(0xc0, 8), nil, 9), usb.StatusInvalid},
		"control direction is not the setup's":            {submitPDU(1, 0x00, setup(0xc0, 8), make([]byte, 8), 8), usb.StatusInvalid},
		"isochronous without packets":                     {iso(), usb.StatusInvalid},
		"isochronous offset past the buffer":              {iso(usb.IsoPacket{Offset: 193, Length: 0}), usb.StatusInvalid},
		"isochronous length past the buffer":              {iso(usb.IsoPacket{Offset: 0, Length: 193}), usb.StatusInvalid},
		"isochronous sum past the buffer":                 {iso(usb.IsoPacket{Offset: 100, Length: 93}), usb.StatusInvalid},
		"isochronous offset and length wrap":              {iso(usb.IsoPacket{Offset: -4, Length: 8}), usb.StatusInvalid},
		"isochronous length wraps":                        {iso(usb.IsoPacket{Offset: 8, Length: -4}), usb.StatusInvalid},
		"isochronous packets overlap":                     {iso(usb.IsoPacket{Length: 100}, usb.IsoPacket{Offset: 99, Length: 10}), usb.StatusInvalid},
		"isochronous packets backwards":                   {iso(usb.IsoPacket{Offset: 100, Length: 10}, usb.IsoPacket{Length: 10}), usb.StatusInvalid},
		"isochronous OUT packets past the data":           {isoSubmitPDU(1, isoOut, 8, make([]byte, 8), usb.IsoPacket{Length: 9}), usb.StatusInvalid},
		"isochronous, 1024 packets of nothing at the end": {iso(make([]usb.IsoPacket, 1024)...), usb.StatusOK},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for kind, pair := range pairs {
				t.Run(kind, func(t *testing.T) {
					must.NotLeak(t)
					conn, theirs := pair(t)
					p := servePeer(t, conn, theirs, hostileLimits)
					p.send(tt.input)
					r := p.recvRetSubmit()
					if r.Seq != 1 || usb.Status(r.Status) != tt.want || r.Actual != 0 {
						t.Errorf("answer %+v, want status %d and no data", r, int32(tt.want))
					}
					for range r.Packets {
						if q := ParseIsoPacket(p.recv(IsoPacketSize)); q.Actual != 0 {
							t.Errorf("packet %+v", q)
						}
					}
					p.works()
					conn.Close()
					must.OK(t, p.end())
				})
			}
		})
	}
}

// TestSessionTolerates lists what is odd and works.
func TestSessionTolerates(t *testing.T) {
	bulk := func(seq uint32) []byte { return submitPDU(seq, bulkIn, usb.Setup{}, nil, 4) }
	tests := map[string]struct {
		input []byte
		seq   uint32
		data  int
	}{
		"sequence number 0":                      {bulk(0), 0, 4},
		"sequence number 2^32-1":                 {bulk(0xffffffff), 0xffffffff, 4},
		"packets -1 in a bulk transfer":          {edit(bulk(1), atPackets, 0xffffffff), 1, 4},
		"packets 2^31-1 in a bulk transfer":      {edit(bulk(1), atPackets, 1<<31-1), 1, 4},
		"isochronous actual_length in a request": {isoSubmitPDU(1, isoIn, 8, nil, usb.IsoPacket{Length: 8, Actual: -1}), 1, 8},
		"bulk transfer of nothing":               {submitPDU(1, bulkIn, usb.Setup{}, nil, 0), 1, 0},
		"control IN without data sent as an OUT": {submitPDU(1, 0, usb.GetDescriptor(usb.DescDevice, 0, 0, 0), nil, 0), 1, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			must.NotLeak(t)
			conn, theirs := tcpPair(t)
			p := servePeer(t, conn, theirs, nil)
			for range 2 { // a number may be used again once its transfer is over
				p.send(tt.input)
				r := p.recvRetSubmit()
				if r.Seq != tt.seq || r.Status != 0 || int(r.Actual) != tt.data {
					t.Errorf("answer %+v", r)
				}
				p.recv(tt.data + int(r.Packets)*IsoPacketSize)
			}
			p.works()
			conn.Close()
			must.OK(t, p.end())
		})
	}
}

func TestSessionUnlinks(t *testing.T) {
	cancelled := int32(usb.StatusCancelled)
	wait := func(p *servedPeer) *usb.URB {
		p.send(submitPDU(1, intrIn, usb.Setup{}, nil, 8))
		return <-p.dev.arrived
	}
	tests := map[string]func(*servedPeer){
		"in flight: cancelled, and nothing else": func(p *servedPeer) {
			wait(p)
			p.send(unlinkPDU(2, 1))
			wantRetUnlink(p, 2, cancelled)
		},
		"after it was over: 0": func(p *servedPeer) {
			p.dev.finish(wait(p), usb.StatusOK, []byte{9})
			if r := p.recvRetSubmit(); r.Seq != 1 || r.Actual != 1 {
				p.t.Errorf("answer %+v", r)
			}
			p.recv(1)
			p.send(unlinkPDU(2, 1))
			wantRetUnlink(p, 2, 0)
		},
		"over while it is cancelled: result first, then 0": func(p *servedPeer) {
			p.dev.respond = func(d *fakeDevice, u *usb.URB) bool { return false }
			u := wait(p)
			if !p.dev.take(u) { // the Cancel to come finds nothing
				p.t.Fatal("transfer is not waiting")
			}
			p.send(unlinkPDU(2, 1))
			p.works() // the unlink has been read
			u.Status, u.Actual = usb.StatusOK, copy(u.Buffer, "abc")
			u.Complete(u)
			if r := p.recvRetSubmit(); r.Seq != 1 || r.Actual != 3 {
				p.t.Errorf("answer %+v", r)
			}
			p.recv(3)
			wantRetUnlink(p, 2, 0)
		},
		"twice: both answered when it is over": func(p *servedPeer) {
			u := wait(p)
			p.dev.take(u)
			p.send(unlinkPDU(2, 1), unlinkPDU(3, 1))
			p.works()
			u.Status, u.Actual = usb.StatusCancelled, 0
			u.Complete(u)
			wantRetUnlink(p, 2, cancelled)
			wantRetUnlink(p, 3, cancelled)
		},
		"of nothing: 0": func(p *servedPeer) { p.send(unlinkPDU(2, 77)); wantRetUnlink(p, 2, 0) },
		"of an unlink: 0": func(p *servedPeer) {
			p.send(unlinkPDU(2, 1), unlinkPDU(3, 2))
			wantRetUnlink(p, 2, 0)
			wantRetUnlink(p, 3, 0)
		},
		"of itself: 0": func(p *servedPeer) { p.send(unlinkPDU(2, 2)); wantRetUnlink(p, 2, 0) },
		"long before the submit: 0, and the transfer waits": func(p *servedPeer) {
			p.send(unlinkPDU(2, 1))
			wantRetUnlink(p, 2, 0)
			wait(p)
			p.send(unlinkPDU(3, 1))
			wantRetUnlink(p, 3, cancelled)
		},
		"ahead of the submit, as Linux may: cancelled with it": func(p *servedPeer) {
			for _, submit := range [][]byte{
				submitPDU(0x20000, bulkOut, usb.Setup{}, make([]byte, 100), 100),
				isoSubmitPDU(0x30000, isoOut, 4, []byte("data"), usb.IsoPacket{Length: 4}),
			} {
				seq := ParseCmdSubmit(submit).Seq
				p.send(unlinkPDU(seq+2, seq), unlinkPDU(seq+3, seq+1), submit)
				wantRetUnlink(p, seq+2, cancelled)
				p.send(submitPDU(seq+4, bulkIn, usb.Setup{}, nil, 0)) // seq+1 does not come any more
				wantRetUnlink(p, seq+3, 0)
				if r := p.recvRetSubmit(); r.Seq != seq+4 {
					p.t.Errorf("answer %+v", r)
				}
				p.seq = seq // of what comes next
			}
		},
		"ahead of too many submits: 0": func(p *servedPeer) {
			for n := range uint32(maxEarly + 1) {
				p.send(unlinkPDU(0x30000+n, 0x20000+n))
			}
			wantRetUnlink(p, 0x30000, 0)
		},
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			must.NotLeak(t)
			conn, theirs := tcpPair(t)
			p := servePeer(t, conn, theirs, nil)
			script(p)
			p.works()
			conn.Close()
			must.OK(t, p.end())
		})
	}
}

// TestSessionRefusesPackets matters to Linux, which takes the layout of its own
// transfer from the answer.
func TestSessionRefusesPackets(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, hostileLimits)
	want := []usb.IsoPacket{{Offset: 0, Length: 100}, {Offset: 40e3, Length: 25e3}}
	for _, ep := range []usb.Address{isoIn, isoOut} {
		var data []byte
		if !ep.In() {
			data = make([]byte, 65e3)
		}
		p.send(isoSubmitPDU(1, ep, 65e3, data, want...)) // over the limit
		p.send(submitPDU(2, 0x8e, usb.Setup{}, nil, 0))
		r := p.recvRetSubmit()
		if r.Seq != 1 || usb.Status(r.Status) != usb.StatusNoMemory || r.Packets != 2 {
			t.Errorf("answer %+v", r)
		}
		for _, q := range want {
			q.Status = usb.StatusNoMemory
			if got := ParseIsoPacket(p.recv(IsoPacketSize)); got.Offset != q.Offset || got.Length != q.Length || got.Status != q.Status {
				t.Errorf("packet %+v, want %+v", got, q)
			}
		}
		if r := p.recvRetSubmit(); r.Seq != 2 {
			t.Errorf("answer %+v", r)
		}
	}
	conn.Close()
	must.OK(t, p.end())
}

func wantRetUnlink(p *servedPeer, seq uint32, status int32) {
	p.t.Helper()
	if r := p.recvRetUnlink(); r.Seq != seq || r.Status != status {
		p.t.Errorf("answer %+v, want %d with status %d", r, seq, status)
	}
}

func TestSessionUnlinkFlood(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, nil)
	p.send(submitPDU(1, intrIn, usb.Setup{}, nil, 8))
	u := <-p.dev.arrived
	p.dev.take(u)
	for seq := range uint32(maxUnlinks + 1) {
		p.send(unlinkPDU(2+seq, 1))
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Fatal(err)
	}
	u.Complete(u)
	must.Is(t, p.end(), ErrProtocol)
}

func TestSessionURBLimit(t *testing.T) {
	must.NotLeak(t)
	conn, theirs := tcpPair(t)
	p := servePeer(t, conn, theirs, hostileLimits)
	for seq := range uint32(8) {
		p.send(submitPDU(1+seq, intrIn, usb.Setup{}, nil, 8))
		<-p.dev.arrived
	}
	p.send(submitPDU(9, intrIn, usb.Setup{}, nil, 8))
	if r := p.recvRetSubmit(); r.Seq != 9 || usb.Status(r.Status) != usb.StatusNoMemory {
		t.Errorf("answer %+v", r)
	}
	p.send(unlinkPDU(10, 1)) // what frees things is read
	wantRetUnlink(p, 10, int32(usb.StatusCancelled))
	p.send(submitPDU(11, intrIn, usb.Setup{}, nil, 8))
	<-p.dev.arrived
	conn.Close()
	must.OK(t, p.end())
}

// TestSessionOneByteASecond shows that a slow peer is served, and harms only
// itself.
func TestSessionOneByteASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, theirs := net.Pipe()
		p := servePeer(t, conn, theirs, nil)
		for _, b := range submitPDU(1, bulkOut, usb.Setup{}, make([]byte, 16), 16) {
			p.send([]byte{b})
			time.Sleep(time.Second)
		}
		if r := p.recvRetSubmit(); r.Status != 0 || r.Actual != 16 {
			t.Errorf("answer %+v", r)
		}
		conn.Close()
		must.OK(t, p.end())
	})
}

// TestSessionPeerNeverReads fills all there is between the two, and shows that
// reading goes on, that memory is bounded, and that the session ends.
func TestSessionPeerNeverReads(t *testing.T) {
	t.Run("data", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			conn, theirs := net.Pipe()
			p := servePeer(t, conn, theirs, hostileLimits)
			for seq := range uint32(100) {
				p.send(submitPDU(1+seq, bulkIn, usb.Setup{}, nil, 16<<10))
			}
			if err := p.end(); !errors.Is(err, errNotReading) {
				t.Errorf("session ended with %v", err)
			}
		})
	})
	t.Run("unlinks", func(t *testing.T) {
		must.NotLeak(t)
		conn, theirs := tcpPair(t)
		p := servePeer(t, conn, theirs, hostileLimits)
		flood := unlinkPDU(2, 1)
		for {
			if _, err := conn.Write(flood); err != nil {
				break
			}
		}
		if err := p.end(); !errors.Is(err, errNotReading) {
			t.Errorf("session ended with %v", err)
		}
	})
}

func TestSessionEndCancels(t *testing.T) {
	ends := map[string]func(*servedPeer, context.CancelFunc){
		"peer closes":     func(p *servedPeer, _ context.CancelFunc) { p.conn.Close() },
		"peer resets":     func(p *servedPeer, _ context.CancelFunc) { p.conn.(*net.TCPConn).SetLinger(0); p.conn.Close() },
		"context ends":    func(_ *servedPeer, cancel context.CancelFunc) { cancel() },
		"peer misbehaves": func(p *servedPeer, _ context.CancelFunc) { p.send(make([]byte, HeaderSize)) },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			must.NotLeak(t)
			conn, theirs := tcpPair(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := &servedPeer{peer: peer{t: t, conn: conn}, dev: newFakeDevice(), ended: make(chan error, 1)}
			go func() { p.ended <- ServeDevice(ctx, theirs, benchDevID, p.dev, nil) }()
			p.configure()
			for seq := range uint32(5) {
				p.send(submitPDU(1+seq, intrIn, usb.Setup{}, nil, 8))
				<-p.dev.arrived
			}
			end(p, cancel)
			p.end()
		})
	}
}
