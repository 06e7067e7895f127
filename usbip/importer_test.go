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

// TestImporterRefuses lists URBs that do not get as far as the wire.
func TestImporterRefuses(t *testing.T) {
	iso := func(p ...usb.IsoPacket) usb.URB {
		return usb.URB{Type: usb.Isochronous, Endpoint: isoIn, Buffer: make([]byte, 100), Packets: p}
	}
	control := func(length uint16, data int) usb.URB {
		return usb.URB{Setup: usb.Setup{RequestType: 0x80, Length: length}, Endpoint: 0x80, Buffer: make([]byte, data)}
	}
	tests := map[string]struct {
		urb  usb.URB
		want error
	}{
		"unknown endpoint":                   {usb.URB{Type: usb.Bulk, Endpoint: 0x85}, usb.ErrNoEndpoint},
		"endpoint of another setting":        {usb.URB{Type: usb.Bulk, Endpoint: altIn}, usb.ErrNoEndpoint},
		"control transfer to a bulk one":     {usb.URB{Type: usb.Control, Endpoint: bulkIn}, usb.ErrInvalid},
		"bulk transfer to endpoint 0":        {usb.URB{Type: usb.Bulk, Endpoint: 0}, usb.ErrInvalid},
		"isochronous transfer to a bulk one": {usb.URB{Type: usb.Isochronous, Endpoint: bulkIn, Packets: []usb.IsoPacket{{}}}, usb.ErrInvalid},
		"bulk transfer to an isochronous":    {usb.URB{Type: usb.Bulk, Endpoint: isoIn}, usb.ErrInvalid},
		"packets in a bulk transfer":         {usb.URB{Type: usb.Bulk, Endpoint: bulkIn, Packets: []usb.IsoPacket{{}}}, usb.ErrInvalid},
		"control data longer than Length":    {control(4, 5), usb.ErrInvalid},
		"control data shorter than Length":   {control(4, 3), usb.ErrInvalid},
		"no packets":                         {iso(), usb.ErrInvalid},
		"1025 packets":                       {iso(make([]usb.IsoPacket, 1025)...), usb.ErrInvalid},
		"packet past the buffer":             {iso(usb.IsoPacket{Offset: 90, Length: 11}), usb.ErrInvalid},
		"packet of negative length":          {iso(usb.IsoPacket{Length: -1}), usb.ErrInvalid},
		"packet at a negative offset":        {iso(usb.IsoPacket{Offset: -1, Length: 1}), usb.ErrInvalid},
		"packets that overlap":               {iso(usb.IsoPacket{Length: 10}, usb.IsoPacket{Offset: 9, Length: 1}), usb.ErrInvalid},
		"more than all may have in flight":   {bulkInURB(DefaultBytes), usb.ErrTooMany},
	}
	p := importPeer(t, tcpPair, ImportOptions{})
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.urb.Complete = func(*usb.URB) { panic("completed a URB that was refused") }
			must.Is(t, p.imp.Submit(&tt.urb), tt.want)
		})
	}
	p.works()
}

func TestImporterControlWithoutData(t *testing.T) {
	p := importPeer(t, tcpPair, ImportOptions{})
	p.submit(usb.URB{Endpoint: usb.DirIn, Setup: usb.Setup{RequestType: 0xc0, Request: 5}})
	if c := p.recvCmdSubmit(); c.Direction != DirOut || c.Flags != 0 {
		t.Errorf("sent as %+v, Linux calls that bogus", c)
	}
}

func TestImporterReset(t *testing.T) {
	must.NotLeak(t)
	reset := func(status usb.Status) error {
		p := importPeer(t, tcpPair, ImportOptions{})
		u := p.submit(bulkInURB(8))
		p.recvCmdSubmit()
		result := make(chan error)
		go func() { result <- p.imp.Reset(t.Context()) }()
		unlink := p.recvCmdUnlink()
		p.send(retUnlinkPDU(unlink.Seq, usb.StatusCancelled))
		c := p.recvCmdSubmit()
		select {
		case <-u.done:
		default:
			t.Error("the reset was sent before the transfer in flight was over")
		}
		if s := usb.ParseSetup(c.Setup); s != usb.PortReset() || c.Length != 0 || c.Direction != DirOut {
			t.Errorf("reset as %+v", c)
		}
		p.send(retSubmitPDU(RetSubmit{Seq: c.Seq, Status: int32(status)}, nil))
		err := <-result
		if _, ok := p.imp.endpoints.Lookup(bulkIn); ok == (err == nil) {
			t.Errorf("after a reset with the result %v the device is configured: %v", err, ok)
		}
		return err
	}
	must.OK(t, reset(usb.StatusOK))
	must.OK(t, reset(usb.StatusStall))
	must.Is(t, reset(usb.StatusProtocol), usb.StatusProtocol.Err())
}

func TestImporterResetGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := importPeer(t, pairs["pipe"], ImportOptions{UnlinkTimeout: time.Hour})
		u := p.submit(bulkInURB(8))
		p.recvCmdSubmit()
		go p.recvCmdUnlink()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.Is(t, p.imp.Reset(ctx), context.DeadlineExceeded)
		p.imp.Close()
		<-u.done
		must.Is(t, p.imp.Reset(t.Context()), usb.ErrGone)
	})
}

func TestImporterEnumerationFails(t *testing.T) {
	descriptor := func(b ...byte) func(CmdSubmit) []byte {
		return func(c CmdSubmit) []byte {
			b := b[:min(len(b), int(c.Length))]
			return retSubmitPDU(RetSubmit{Seq: c.Seq, Actual: int32(len(b))}, b)
		}
	}
	good := fakeDescriptors().Raw()
	tests := map[string]func(CmdSubmit) []byte{
		"device descriptor of nothing":  descriptor(),
		"device descriptor cut":         descriptor(good.Device[:17]...),
		"device descriptor of length 0": descriptor(append([]byte{0}, good.Device[1:]...)...),
		"a stall": func(c CmdSubmit) []byte {
			return retSubmitPDU(RetSubmit{Seq: c.Seq, Status: int32(usb.StatusStall)}, nil)
		},
		"configuration that is the device": descriptor(good.Device...),
		"more data than asked for": func(c CmdSubmit) []byte {
			return retSubmitPDU(RetSubmit{Seq: c.Seq, Actual: c.Length + 1}, make([]byte, c.Length+1))
		},
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			must.NotLeak(t)
			conn, theirs := tcpPair(t)
			p := &peer{t: t, conn: conn}
			go func() {
				for b := make([]byte, HeaderSize); ; {
					if _, err := io.ReadFull(conn, b); err != nil {
						return
					}
					p.send(answer(ParseCmdSubmit(b)))
				}
			}()
			_, err := NewImporter(t.Context(), theirs, benchDevID, usb.SpeedHigh, nil)
			if _, ok := errors.AsType[*OpError](err); !ok {
				t.Errorf("error %v", err)
			}
			if _, err := theirs.Write([]byte{0}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is open: %v", err)
			}
		})
	}
}

func TestImporterSpeedUnknown(t *testing.T) {
	conn, theirs := tcpPair(t)
	_, err := NewImporter(t.Context(), theirs, benchDevID, usb.SpeedUnknown, nil)
	must.Is(t, err, ErrProtocol)
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is open: %v", err)
	}
}
