package usbip

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// A scriptConn gives what a peer sends, once go is closed, and takes anything.
type scriptConn struct {
	r      *bytes.Reader
	start  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newScriptConn(script []byte) *scriptConn {
	return &scriptConn{r: bytes.NewReader(script), start: make(chan struct{}), closed: make(chan struct{})}
}

func (c *scriptConn) Read(p []byte) (int, error) {
	select {
	case <-c.start:
	case <-c.closed:
		return 0, net.ErrClosed
	}
	return c.r.Read(p)
}

func (c *scriptConn) Write(p []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
		return len(p), nil
	}
}

func (c *scriptConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *scriptConn) LocalAddr() net.Addr              { return nil }
func (c *scriptConn) RemoteAddr() net.Addr             { return nil }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

func FuzzPDU(f *testing.F) {
	f.Add(control18())
	f.Add(unlinkPDU(2, 1))
	f.Add(retSubmitPDU(RetSubmit{1, -32, 3, 4, 5, 6}, nil))
	f.Add(retUnlinkPDU(2, usb.StatusCancelled))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		out := make([]byte, HeaderSize)
		c := ParseCmdSubmit(b)
		if c.Put(out); c != ParseCmdSubmit(out) {
			t.Error("CMD_SUBMIT")
		}
		r := ParseRetSubmit(b)
		if r.Put(out); r != ParseRetSubmit(out) {
			t.Error("RET_SUBMIT")
		}
		u := ParseCmdUnlink(b)
		if u.Put(out); u != ParseCmdUnlink(out) {
			t.Error("CMD_UNLINK")
		}
		ru := ParseRetUnlink(b)
		if ru.Put(out); ru != ParseRetUnlink(out) {
			t.Error("RET_UNLINK")
		}
		p := ParseIsoPacket(b)
		if PutIsoPacket(out, p); !bytes.Equal(out[:IsoPacketSize], b[:IsoPacketSize]) {
			t.Error("isochronous packet")
		}
	})
}

func FuzzDeviceInfo(f *testing.F) {
	f.Add(oneDevice.Append(nil))
	f.Add(device(atBusID, "../../etc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < DeviceInfoSize {
			return
		}
		d, _, err := ParseDeviceInfo(b)
		if err != nil {
			return
		}
		d.Path = d.Path[:min(len(d.Path), pathSize-1)]
		again, _, err := ParseDeviceInfo(d.Append(nil))
		if err != nil || !reflect.DeepEqual(d, again) {
			t.Errorf("%+v becomes %+v, %v", d, again, err)
		}
	})
}

func FuzzList(f *testing.F) {
	f.Add(join(OpHeader{Version, OpRepDevlist, OpOK}.Append(nil), []byte{0, 0, 0, 1}, oneDevice.Append(nil), oneDevice.AppendInterfaces(nil)))
	f.Add(OpHeader{Version, OpRepDevlist, OpFailed}.Append(nil))
	f.Fuzz(func(t *testing.T, script []byte) {
		conn := newScriptConn(script)
		close(conn.start)
		list, err := List(t.Context(), conn)
		if err == nil && len(list)*DeviceInfoSize > len(script) {
			t.Errorf("%d devices out of %d bytes", len(list), len(script))
		}
		for _, d := range list {
			if CheckBusID(d.BusID) != nil {
				t.Errorf("busid %q", d.BusID)
			}
		}
	})
}

func FuzzRequestImport(f *testing.F) {
	f.Add(join(OpHeader{Version, OpRepImport, OpOK}.Append(nil), oneDevice.Append(nil)))
	f.Add(OpHeader{Version, OpRepImport, OpBusy}.Append(nil))
	f.Fuzz(func(t *testing.T, script []byte) {
		conn := newScriptConn(script)
		close(conn.start)
		d, err := RequestImport(t.Context(), conn, "3-1")
		if err == nil && d.BusID != "3-1" {
			t.Errorf("got %+v", d)
		}
	})
}

// FuzzExporter is a whole connection to an Exporter: the request, and the URB
// phase behind an IMPORT.
func FuzzExporter(f *testing.F) {
	request := append(OpHeader{Version, OpReqImport, OpOK}.Append(nil), (DeviceInfo{BusID: "1-1"}).busidField()...)
	f.Add(OpHeader{Version, OpReqDevlist, OpOK}.Append(nil))
	for _, s := range sessionSeeds() {
		f.Add(append(bytes.Clone(request), s...))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		dev := newFakeDevice()
		dev.arrived = nil
		e := &Exporter{ServeOptions: *hostileLimits}
		must.OK(t, e.Add("1-1", dev))
		conn := newScriptConn(script)
		close(conn.start)
		e.serveConn(t.Context(), e.begin(t.Context(), conn), conn)
		if len(dev.waiting) != 0 || len(e.pending) != 0 || e.exports[0].user != nil {
			t.Error("something is left of the connection")
		}
	})
}

func (d DeviceInfo) busidField() []byte { return appendPadded(nil, d.BusID, BusIDSize) }

func sessionSeeds() [][]byte {
	configure := submitPDU(9, 0, usb.SetConfiguration(1), nil, 0)
	return [][]byte{
		control18(),
		join(configure, submitPDU(1, bulkOut, usb.Setup{}, []byte("data"), 4), submitPDU(2, bulkIn, usb.Setup{}, nil, 100)),
		join(configure, submitPDU(1, intrIn, usb.Setup{}, nil, 8), unlinkPDU(2, 1), unlinkPDU(3, 1)),
		join(configure, isoSubmitPDU(1, isoIn, 20, nil, usb.IsoPacket{Length: 10}, usb.IsoPacket{Offset: 10, Length: 10})),
		join(configure, isoSubmitPDU(1, isoOut, 4, []byte("data"), usb.IsoPacket{Length: 4})),
		join(configure, submitPDU(1, 0, usb.PortReset(), nil, 0), submitPDU(2, 0, usb.SetInterface(0, 1), nil, 0)),
	}
}

// FuzzImporter is what a peer may answer to transfers of every kind, one of
// them cancelled.
func FuzzImporter(f *testing.F) {
	ok := func(seq uint32, data int) []byte {
		return retSubmitPDU(RetSubmit{Seq: seq, Actual: int32(data)}, make([]byte, data))
	}
	f.Add(join(ok(1, 18), ok(2, 64), ok(3, 0), retUnlinkPDU(6, usb.StatusCancelled)))
	f.Add(join(retSubmitPDU(RetSubmit{Seq: 4, Actual: 5, Packets: 2}, []byte("hello"), usb.IsoPacket{Actual: 2}, usb.IsoPacket{Actual: 3}), retUnlinkPDU(6, 0), ok(5, 8)))
	f.Add(join(ok(3, 0), make([]byte, 5000), ok(2, 1)))
	f.Fuzz(func(t *testing.T, script []byte) {
		conn := newScriptConn(script)
		i, err := NewImporter(t.Context(), conn, benchDevID, usb.SpeedHigh, &ImportOptions{Descriptors: fakeDescriptors()})
		must.OK(t, err)
		i.endpoints.Observe(usb.SetConfiguration(1), usb.StatusOK)
		urbs := []usb.URB{
			{Endpoint: usb.DirIn, Setup: usb.GetDescriptor(usb.DescDevice, 0, 0, 18), Buffer: make([]byte, 18)},
			bulkInURB(64), bulkOutURB(5000), isoInURB(4, 4), bulkInURB(8),
		}
		completed := make([]int, len(urbs))
		for n := range urbs {
			urbs[n].Complete = func(u *usb.URB) {
				completed[n]++
				if u.Actual < 0 || u.Actual > len(u.Buffer) {
					t.Errorf("%d bytes moved of %d", u.Actual, len(u.Buffer))
				}
			}
			must.OK(t, i.Submit(&urbs[n]))
		}
		i.Cancel(&urbs[4])
		close(conn.start)
		<-i.Gone()
		for n, c := range completed {
			if c != 1 {
				t.Errorf("URB %d completed %d times", n, c)
			}
		}
		if !errors.Is(i.Err(), ErrProtocol) && !errors.Is(i.Err(), io.EOF) && !errors.Is(i.Err(), io.ErrUnexpectedEOF) {
			t.Errorf("gone by %v", i.Err())
		}
		if i.inFlight != 0 || i.bytes != 0 {
			t.Errorf("%d URBs, %d bytes are left", i.inFlight, i.bytes)
		}
	})
}
