//go:build linux

package kernel_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// mimic answers as an exporter of dev would, but for what twist makes of each
// reply. It returns when twist returns false, without that reply, or when the
// connection ends.
func mimic(peer net.Conn, dev usb.Device, twist func(c *usbip.CmdSubmit, reply *[]byte) bool) {
	for {
		var b [usbip.HeaderSize]byte
		if _, err := io.ReadFull(peer, b[:]); err != nil {
			return
		}
		if usbip.PeekCommand(b[:]) == usbip.CommandUnlink {
			answerUnlink(peer, b[:])
			continue
		}
		c := usbip.ParseCmdSubmit(b[:])
		out := 0
		if c.Direction == usbip.DirOut {
			out = int(c.Length)
		}
		data := make([]byte, c.Length)
		if _, err := io.ReadFull(peer, data[:out]); err != nil {
			return
		}
		packets := make([]byte, 0)
		if c.Endpoint != 0 && c.Packets > 0 {
			packets = make([]byte, int(c.Packets)*usbip.IsoPacketSize)
			if _, err := io.ReadFull(peer, packets); err != nil {
				return
			}
		}
		r := usbip.RetSubmit{Seq: c.Seq, Packets: c.Packets}
		if c.Endpoint == 0 {
			n, err := usb.ControlTransfer(context.Background(), dev, usb.ParseSetup(c.Setup), data)
			if status, ok := errors.AsType[*usb.StatusError](err); ok {
				r.Status = int32(status.Status)
			} else if err != nil {
				return
			}
			r.Actual = int32(n)
			data = data[:n]
		} else {
			data = nil
		}
		reply := make([]byte, usbip.HeaderSize)
		r.Put(reply)
		if out == 0 {
			reply = append(reply, data...)
		}
		reply = append(reply, packets...)
		if !twist(&c, &reply) {
			return
		}
		if _, err := peer.Write(reply); err != nil {
			return
		}
	}
}

func answerUnlink(peer net.Conn, pdu []byte) {
	c := usbip.ParseCmdUnlink(pdu)
	r := usbip.RetUnlink{Seq: c.Seq, Status: int32(usb.StatusCancelled)}
	var b [usbip.HeaderSize]byte
	r.Put(b[:])
	_, _ = peer.Write(b[:])
}

// mute reads, and answers nothing but cancellations, if it does.
func mute(peer net.Conn, unlinks bool) {
	for {
		var b [usbip.HeaderSize]byte
		if _, err := io.ReadFull(peer, b[:]); err != nil {
			return
		}
		switch c := usbip.ParseCmdSubmit(b[:]); {
		case usbip.PeekCommand(b[:]) == usbip.CommandUnlink && unlinks:
			answerUnlink(peer, b[:])
		case usbip.PeekCommand(b[:]) == usbip.CommandSubmit && c.Direction == usbip.DirOut:
			if _, err := io.CopyN(io.Discard, peer, int64(c.Length)); err != nil {
				return
			}
		}
	}
}

func newDevice(t testing.TB, kind string) usb.Device {
	t.Helper()
	d, err := emulate.Open(kind, emulate.Options{})
	must.OK(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// noChildren waits until no worker is left that this process has started.
func noChildren(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(patient); ; time.Sleep(5 * time.Millisecond) {
		var left []string
		entries, err := os.ReadDir("/proc")
		must.OK(t, err)
		for _, e := range entries {
			stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
			if err != nil {
				continue
			}
			// Behind the name, which may hold anything, come state and parent.
			var state string
			var parent int
			text := string(stat)
			if _, err := fmt.Sscan(text[strings.LastIndexByte(text, ')')+1:], &state, &parent); err == nil && parent == os.Getpid() {
				left = append(left, text)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are left:\n%s", strings.Join(left, ""))
		}
	}
}

func put32(b []byte, offset int, v uint32) { binary.BigEndian.PutUint32(b[offset:], v) }
