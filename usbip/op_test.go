package usbip

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// oneDevice is on the wire what the stock usbip reads.
var oneDevice = DeviceInfo{
	Path: "/sys/devices/pci0000:00/usb3/3-1", BusID: "3-1", BusNum: 3, DevNum: 2,
	Speed: usb.SpeedHigh, Vendor: 0x1234, Product: 0x5678, Version: 0x0100,
	Class: 0xff, SubClass: 1, Protocol: 2, Configuration: 1, NumConfigurations: 1,
	Interfaces: []InterfaceInfo{{3, 1, 1}, {8, 6, 0x50}},
}

// answering runs a server that reads n bytes and answers.
func answering(t *testing.T, n int, answer []byte) net.Conn {
	conn, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if _, err := io.ReadFull(theirs, make([]byte, n)); err != nil {
			return
		}
		theirs.Write(answer)
	}()
	t.Cleanup(func() { conn.Close() })
	return conn
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// device encodes a device, changed at an offset.
func device(offset int, change string) []byte {
	b := oneDevice.Append(nil)
	copy(b[offset:], change)
	return b
}

const (
	atBusID      = pathSize
	atSpeed      = pathSize + BusIDSize + 8
	atInterfaces = DeviceInfoSize - 1
)

func TestList(t *testing.T) {
	header := func(n string) []byte {
		return append(OpHeader{Version, OpRepDevlist, OpOK}.Append(nil), n...)
	}
	interfaces := oneDevice.AppendInterfaces(nil)
	tests := map[string]struct {
		answer []byte
		want   error // nil: the devices are listed
		n      int
	}{
		"none":                            {header("\x00\x00\x00\x00"), nil, 0},
		"one":                             {join(header("\x00\x00\x00\x01"), device(0, ""), interfaces), nil, 1},
		"two":                             {join(header("\x00\x00\x00\x02"), device(0, ""), interfaces, device(0, ""), interfaces), nil, 2},
		"no interfaces":                   {join(header("\x00\x00\x00\x01"), device(atInterfaces, "\x00")), nil, 1},
		"255 interfaces":                  {join(header("\x00\x00\x00\x01"), device(atInterfaces, "\xff"), make([]byte, 255*4)), nil, 1},
		"unterminated path":               {join(header("\x00\x00\x00\x01"), device(0, strings.Repeat("p", 256)), interfaces), nil, 1},
		"speed out of range":              {join(header("\x00\x00\x00\x01"), device(atSpeed, "\xff\xff\xff\xff"), interfaces), nil, 1},
		"trailing bytes":                  {join(header("\x00\x00\x00\x00"), []byte("more")), nil, 0},
		"2^32-1 devices":                  {header("\xff\xff\xff\xff"), ErrProtocol, 0},
		"fewer devices than announced":    {join(header("\x00\x00\x00\x02"), device(0, ""), interfaces), io.ErrUnexpectedEOF, 0},
		"fewer interfaces than announced": {join(header("\x00\x00\x00\x01"), device(atInterfaces, "\xff"), interfaces), io.ErrUnexpectedEOF, 0},
		"unterminated busid":              {join(header("\x00\x00\x00\x01"), device(atBusID, strings.Repeat("1", 32)), interfaces), ErrProtocol, 0},
		"empty busid":                     {join(header("\x00\x00\x00\x01"), device(atBusID, "\x00"), interfaces), ErrProtocol, 0},
		"slash in the busid":              {join(header("\x00\x00\x00\x01"), device(atBusID, "../1"), interfaces), ErrProtocol, 0},
		"newline in the busid":            {join(header("\x00\x00\x00\x01"), device(atBusID, "3\n1"), interfaces), ErrProtocol, 0},
		"dots as the busid":               {join(header("\x00\x00\x00\x01"), device(atBusID, ".."), interfaces), ErrProtocol, 0},
		"terminal escape in the path":     {join(header("\x00\x00\x00\x01"), device(0, "\x1b[2J"), interfaces), ErrProtocol, 0},
		"newline in the path":             {join(header("\x00\x00\x00\x01"), device(4, "\n"), interfaces), ErrProtocol, 0},
		"wrong version":                   {OpHeader{0x0106, OpRepDevlist, OpOK}.Append(nil), ErrProtocol, 0},
		"wrong code":                      {OpHeader{Version, OpRepImport, OpOK}.Append(nil), ErrProtocol, 0},
		"status without a body":           {OpHeader{Version, OpRepDevlist, OpUnexpected}.Append(nil), OpUnexpected, 0},
		"unknown status":                  {OpHeader{Version, OpRepDevlist, 77}.Append(nil), OpStatus(77), 0},
		"partial header":                  {header("")[:5], io.ErrUnexpectedEOF, 0},
		"end in place of a header":        {nil, io.ErrUnexpectedEOF, 0},
		"end in place of a number":        {header(""), io.ErrUnexpectedEOF, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			list, err := List(t.Context(), answering(t, OpHeaderSize, tt.answer))
			if tt.want != nil {
				if _, ok := errors.AsType[*OpError](err); !ok || list != nil {
					t.Errorf("List gives %v, %v", list, err)
				}
				must.Is(t, err, tt.want)
				return
			}
			if must.OK(t, err); len(list) != tt.n {
				t.Errorf("%d devices, want %d", len(list), tt.n)
			}
			for _, d := range list {
				if d.Speed != usb.SpeedHigh && d.Speed != usb.SpeedUnknown {
					t.Errorf("%v", d.Speed)
				}
			}
		})
	}
}

func TestListDevice(t *testing.T) {
	b := join(OpHeader{Version, OpRepDevlist, OpOK}.Append(nil), []byte{0, 0, 0, 1}, oneDevice.Append(nil), oneDevice.AppendInterfaces(nil))
	list, err := List(t.Context(), answering(t, OpHeaderSize, b))
	must.OK(t, err)
	if !reflect.DeepEqual(list, []DeviceInfo{oneDevice}) {
		t.Errorf("got %+v", list)
	}
}

func TestRequestImport(t *testing.T) {
	ok := OpHeader{Version, OpRepImport, OpOK}.Append(nil)
	refusal := func(s OpStatus) []byte { return OpHeader{Version, OpRepImport, s}.Append(nil) }
	tests := map[string]struct {
		answer []byte
		want   error
	}{
		"granted":                  {join(ok, device(0, "")), nil},
		"request failed":           {refusal(OpFailed), OpFailed},
		"busy":                     {refusal(OpBusy), OpBusy},
		"device in error":          {refusal(OpDevError), OpDevError},
		"no such device":           {refusal(OpNoDevice), OpNoDevice},
		"unexpected":               {refusal(OpUnexpected), OpUnexpected},
		"closed without an answer": {nil, io.ErrUnexpectedEOF},
		"partial header":           {ok[:3], io.ErrUnexpectedEOF},
		"partial device":           {join(ok, device(0, "")[:311]), io.ErrUnexpectedEOF},
		"another busid":            {join(ok, device(atBusID, "3-2")), ErrProtocol},
		"longer busid":             {join(ok, device(atBusID, "3-1.1")), ErrProtocol},
		"wrong version":            {join(OpHeader{0, OpRepImport, OpOK}.Append(nil), device(0, "")), ErrProtocol},
		"wrong code":               {join(OpHeader{Version, OpReqImport, OpOK}.Append(nil), device(0, "")), ErrProtocol},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := RequestImport(t.Context(), answering(t, OpHeaderSize+BusIDSize, tt.answer), "3-1")
			if tt.want != nil {
				must.Is(t, err, tt.want)
				e, ok := errors.AsType[*OpError](err)
				if !ok || e.BusID != "3-1" || e.Op != "import" || e.Peer != "pipe" {
					t.Errorf("error %#v", err)
				}
				return
			}
			must.OK(t, err)
			want := oneDevice
			want.Interfaces = nil
			if !reflect.DeepEqual(d, want) || d.DevID() != 3<<16|2 {
				t.Errorf("got %+v", d)
			}
		})
	}
}

// TestRequestImportReadsNoFurther matters to those who hand the socket on.
func TestRequestImportReadsNoFurther(t *testing.T) {
	conn := answering(t, OpHeaderSize+BusIDSize, join(OpHeader{Version, OpRepImport, OpOK}.Append(nil), device(0, ""), []byte("rest")))
	_, err := RequestImport(t.Context(), conn, "3-1")
	must.OK(t, err)
	if b, err := io.ReadAll(conn); string(b) != "rest" {
		t.Errorf("what is left is %q, %v", b, err)
	}
}

func TestRequestImportBadBusID(t *testing.T) {
	conn, _ := net.Pipe()
	for _, busid := range []string{"", "1/2", "1\x00", "1 2", strings.Repeat("1", 32), ".."} {
		if _, err := RequestImport(t.Context(), conn, busid); err == nil {
			t.Errorf("busid %q was sent", busid)
		}
	}
}

// TestHandshakeEnds shows what ends a request that a server leaves hanging:
// the context, or else the default.
func TestHandshakeEnds(t *testing.T) {
	peers := map[string]func(net.Conn){
		"silent":        func(conn net.Conn) { io.Copy(io.Discard, conn) },
		"does not read": func(net.Conn) {},
		"one byte a second": func(conn net.Conn) {
			go io.Copy(io.Discard, conn)
			for {
				if _, err := conn.Write([]byte{1}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
	}
	requests := map[string]func(context.Context, net.Conn) error{
		"list":   func(ctx context.Context, c net.Conn) error { _, err := List(ctx, c); return err },
		"import": func(ctx context.Context, c net.Conn) error { _, err := RequestImport(ctx, c, "1-1"); return err },
	}
	for peer, serve := range peers {
		for op, request := range requests {
			if peer == "one byte a second" && op == "import" {
				continue // it ends with the eighth byte, which is no header
			}
			t.Run(op+" "+peer, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					conn, theirs := net.Pipe()
					var served sync.WaitGroup
					served.Go(func() { serve(theirs) })
					defer served.Wait()
					defer conn.Close()
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					start := time.Now()
					must.Is(t, request(ctx, conn), context.DeadlineExceeded)
					if d := time.Since(start); d != 5*time.Second {
						t.Errorf("ended after %v", d)
					}
				})
			})
		}
	}
	t.Run("without a deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			conn, theirs := net.Pipe()
			defer conn.Close()
			go io.Copy(io.Discard, theirs)
			start := time.Now()
			_, err := List(t.Context(), conn)
			must.Is(t, err, os.ErrDeadlineExceeded)
			if d := time.Since(start); d != DefaultHandshakeTimeout {
				t.Errorf("ended after %v", d)
			}
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			conn, theirs := net.Pipe()
			defer conn.Close()
			go io.Copy(io.Discard, theirs)
			ctx, cancel := context.WithCancelCause(t.Context())
			reason := errors.New("reason")
			time.AfterFunc(time.Second, func() { cancel(reason) })
			_, err := List(ctx, conn)
			must.Is(t, err, reason)
		})
	})
}

func TestErrorTexts(t *testing.T) {
	for want, err := range map[string]error{
		"import 1-1 (peer 10.0.0.1:3240): device is in use by another importer": &OpError{"import", "10.0.0.1:3240", "1-1", OpBusy},
		"serve: peer violates the USB/IP protocol: command 9":                   &OpError{Op: "serve", Err: protocolError("command %d", 9)},
		"peer answered with the unknown status 9":                               OpStatus(9),
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
	}
}

// TestGoldenBytes holds each message to the bytes of the kernel's
// Documentation/usb/usbip_protocol.rst and of the headers it leaves to them.
func TestGoldenBytes(t *testing.T) {
	put := func(p interface{ Put([]byte) }) []byte {
		b := bytes.Repeat([]byte{0xee}, HeaderSize) // all of it is written
		p.Put(b)
		return b
	}
	iso := make([]byte, IsoPacketSize)
	PutIsoPacket(iso, usb.IsoPacket{Offset: 0x180, Length: 0xc0, Actual: 0xbf, Status: usb.StatusXDev})
	tests := map[string]struct {
		got  []byte
		want string
	}{
		"OP_REQ_DEVLIST": {OpHeader{Version, OpReqDevlist, OpOK}.Append(nil), "0111 8005 00000000"},
		"OP_REP_DEVLIST": {OpHeader{Version, OpRepDevlist, OpOK}.Append(nil), "0111 0005 00000000"},
		"OP_REQ_IMPORT":  {OpHeader{Version, OpReqImport, OpOK}.Append(nil), "0111 8003 00000000"},
		"OP_REP_IMPORT":  {OpHeader{Version, OpRepImport, OpNoDevice}.Append(nil), "0111 0003 00000004"},
		"device": {
			oneDevice.Append(nil), hex.EncodeToString([]byte(oneDevice.Path)) + strings.Repeat("00", 256-len(oneDevice.Path)) +
				"332d31" + strings.Repeat("00", 29) + "00000003 00000002 00000003 1234 5678 0100 ff 01 02 01 01 02",
		},
		"interfaces": {oneDevice.AppendInterfaces(nil), "03010100 08065000"},
		"USBIP_CMD_SUBMIT": {
			put(&CmdSubmit{0xd05, 0x1000f, DirIn, 1, 0x200, 0x40, -1, -2, 4, usb.GetDescriptor(1, 0, 0, 18).Bytes()}),
			"00000001 00000d05 0001000f 00000001 00000001 00000200 00000040 ffffffff fffffffe 00000004 8006000100001200",
		},
		"USBIP_RET_SUBMIT": {
			put(&RetSubmit{0xd05, -32, 0x40, 5, 6, 7}),
			"00000003 00000d05 00000000 00000000 00000000 ffffffe0 00000040 00000005 00000006 00000007 0000000000000000",
		},
		"USBIP_CMD_UNLINK": {
			put(&CmdUnlink{0xd06, 0x1000f, 0xd05}),
			"00000002 00000d06 0001000f 00000000 00000000 00000d05 000000000000000000000000000000000000000000000000",
		},
		"USBIP_RET_UNLINK": {
			put(&RetUnlink{0xd06, -104}),
			"00000004 00000d06 00000000 00000000 00000000 ffffff98 000000000000000000000000000000000000000000000000",
		},
		"isochronous packet": {iso, "00000180 000000c0 000000bf ffffffee"},
	}
	for name, tt := range tests {
		want, err := hex.DecodeString(strings.ReplaceAll(tt.want, " ", ""))
		must.OK(t, err)
		if !bytes.Equal(tt.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, tt.got, want)
		}
	}
}

func TestDial(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for addr, want := range map[string]string{
		"host": "host:3240", "host:99": "host:99", "10.0.0.1": "10.0.0.1:3240", "::1": "[::1]:3240", "[::1]": "[::1]:3240", "[::1]:99": "[::1]:99",
	} {
		_, err := Dial(ctx, addr)
		if e, ok := errors.AsType[*OpError](err); !ok || e.Op != "dial" || e.Peer != want {
			t.Errorf("Dial %q: %v", addr, err)
		}
	}
}
