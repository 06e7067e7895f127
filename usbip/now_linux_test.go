//go:build !386

package usbip

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// makeBlocking does what any holder of a socket can do to all others.
func makeBlocking(t *testing.T, conn net.Conn) {
	t.Helper()
	rc, err := conn.(syscall.Conn).SyscallConn()
	must.OK(t, err)
	must.OK(t, rc.Control(func(fd uintptr) { must.OK(t, syscall.SetNonblock(int(fd), false)) }))
}

// TestSharedSocketMadeBlocking has who gave the socket away, and kept it, make it
// one whose calls wait. Neither role lets itself be held.
func TestSharedSocketMadeBlocking(t *testing.T) {
	for name, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){"tcp": tcpPair, "unix": unixPair} {
		t.Run(name+"/importer", func(t *testing.T) {
			must.NotLeak(t)
			p := importPeer(t, pair, ImportOptions{Limits: Limits{WriteTimeout: 50 * time.Millisecond}})
			makeBlocking(t, p.imp.conn)
			p.works()
			var err error
			for err == nil { // until the peer, who does not read, has filled all there is
				u := bulkOutURB(1 << 20)
				u.Complete = func(*usb.URB) {}
				err = p.imp.Submit(&u)
			}
			if !errors.Is(err, usb.ErrTooMany) && !errors.Is(err, errNotReading) {
				t.Error(err)
			}
			must.Await(t, "end of the importer", p.imp.Gone())
			must.Is(t, p.imp.Err(), errNotReading)
		})
		t.Run(name+"/session", func(t *testing.T) {
			must.NotLeak(t)
			conn, theirs := pair(t)
			ctx, cancel := context.WithCancel(t.Context())
			p := &servedPeer{peer: peer{t: t, conn: conn}, dev: newFakeDevice(), ended: make(chan error, 1)}
			done := make(chan struct{})
			go func() { p.ended <- ServeDevice(ctx, theirs, benchDevID, p.dev, nil); close(done) }()
			p.configure()
			makeBlocking(t, theirs)
			p.send(submitPDU(1, bulkOut, usb.Setup{}, make([]byte, 100), 64<<10)) // and no more of it
			p.send(nil)
			cancel()
			must.Await(t, "end of the session", done)
			must.Is(t, p.end(), context.Canceled)
		})
	}
}
