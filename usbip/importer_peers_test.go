package usbip

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// TestImporterLateAnswer shows that what follows the answer to a cancellation
// ends the connection, as in Linux: the peer is not one to count with.
func TestImporterLateAnswer(t *testing.T) {
	must.NotLeak(t)
	p := importPeer(t, tcpPair, ImportOptions{})
	u := p.submit(bulkInURB(8))
	submit := p.recvCmdSubmit().Seq
	p.imp.Cancel(&u.URB)
	p.send(retUnlinkPDU(p.recvCmdUnlink().Seq, usb.StatusCancelled), retSubmitPDU(RetSubmit{Seq: submit}, nil))
	<-p.imp.Gone()
	must.Is(t, p.imp.Err(), ErrProtocol)
}

// TestImporterAnsweredTwice is about what stands behind an answer.
func TestImporterAnsweredTwice(t *testing.T) {
	for name, more := range map[string]func(seq uint32) []byte{
		"the same again": func(seq uint32) []byte { return retSubmitPDU(RetSubmit{Seq: seq, Actual: 1}, []byte{7}) },
		"trailing bytes": func(uint32) []byte { return make([]byte, HeaderSize) },
	} {
		t.Run(name, func(t *testing.T) {
			must.NotLeak(t)
			p := importPeer(t, tcpPair, ImportOptions{})
			u := p.submit(bulkInURB(1))
			seq := p.recvCmdSubmit().Seq
			p.send(retSubmitPDU(RetSubmit{Seq: seq, Actual: 1}, []byte{7}), more(seq))
			if <-u.done; u.Status != usb.StatusOK {
				t.Errorf("transfer ended with %v", u.Status)
			}
			<-p.imp.Gone()
			must.Is(t, p.imp.Err(), ErrProtocol)
		})
	}
}

// TestImporterClosedInMidTransfer has half of an answer when it is closed, by
// several at once.
func TestImporterClosedInMidTransfer(t *testing.T) {
	must.NotLeak(t)
	p := importPeer(t, tcpPair, ImportOptions{})
	u := p.submit(bulkInURB(64 << 10))
	p.send(retSubmitPDU(RetSubmit{Seq: p.recvCmdSubmit().Seq, Actual: 64 << 10}, make([]byte, 32<<10)))
	var closing sync.WaitGroup
	for range 3 {
		closing.Go(func() { must.OK(t, p.imp.Close()) })
	}
	closing.Wait()
	if <-u.done; u.Status != usb.StatusNoDevice || u.Actual != 0 {
		t.Errorf("transfer ended with %v, %d bytes", u.Status, u.Actual)
	}
	must.Is(t, p.imp.Err(), net.ErrClosed)
	must.OK(t, p.imp.Close())
}

// TestImporterOneByteASecond shows that a slow peer is waited for, once the
// device is known.
func TestImporterOneByteASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := importPeer(t, pairs["pipe"], ImportOptions{})
		u := p.submit(bulkInURB(8))
		for _, b := range retSubmitPDU(RetSubmit{Seq: p.recvCmdSubmit().Seq, Actual: 8}, []byte("12345678")) {
			p.send([]byte{b})
			time.Sleep(time.Second)
		}
		if <-u.done; u.Status != usb.StatusOK || string(u.Buffer) != "12345678" {
			t.Errorf("transfer ended with %v, %q", u.Status, u.Buffer)
		}
	})
}

// TestImporterUnlinkAnsweredAsSubmit takes the number of the one for the other.
func TestImporterUnlinkAnsweredAsSubmit(t *testing.T) {
	must.NotLeak(t)
	p := importPeer(t, tcpPair, ImportOptions{})
	u := p.submit(bulkInURB(8))
	p.recvCmdSubmit()
	p.imp.Cancel(&u.URB)
	p.send(retSubmitPDU(RetSubmit{Seq: p.recvCmdUnlink().Seq, Actual: 8}, make([]byte, 8)))
	<-p.imp.Gone()
	must.Is(t, p.imp.Err(), ErrProtocol)
	if <-u.done; u.Status != usb.StatusNoDevice {
		t.Errorf("transfer ended with %v", u.Status)
	}
}

// TestImporterUnlinkTimeout is the peer that goes on answering everything but
// the cancellation.
func TestImporterUnlinkTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := importPeer(t, pairs["pipe"], ImportOptions{UnlinkTimeout: time.Minute})
		u, other := p.submit(bulkInURB(8)), p.submit(bulkInURB(8))
		p.recvCmdSubmit()
		p.recvCmdSubmit()
		start := time.Now()
		p.imp.Cancel(&u.URB)
		p.recvCmdUnlink()
		time.Sleep(time.Minute - 1)
		p.works()
		<-p.imp.Gone()
		if d := time.Since(start); d != time.Minute {
			t.Errorf("gone after %v", d)
		}
		must.Is(t, p.imp.Err(), os.ErrDeadlineExceeded)
		<-u.done
		<-other.done
	})
}

// TestImporterOnlyUnlinksAnswered is the peer on which a kernel hangs: what
// bounds it here is the caller's context.
func TestImporterOnlyUnlinksAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, theirs := net.Pipe()
		p := &peer{t: t, conn: conn}
		go func() {
			for {
				b := make([]byte, HeaderSize)
				if _, err := io.ReadFull(conn, b); err != nil {
					return
				}
				if PeekCommand(b) == CommandUnlink {
					p.send(retUnlinkPDU(ParseCmdUnlink(b).Seq, usb.StatusCancelled))
				}
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := NewImporter(ctx, theirs, benchDevID, usb.SpeedHigh, nil)
		must.Is(t, err, context.DeadlineExceeded)
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("returned after %v", d)
		}
	})
}

// TestImporterSilentPeer is the one that answers IMPORT, and then nothing, or
// too little.
func TestImporterSilentPeer(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"deadline": 3 * time.Second, "default": 0, "one byte a second": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, theirs := net.Pipe()
				go io.Copy(io.Discard, conn)
				var answering sync.WaitGroup
				defer answering.Wait()
				if name == "one byte a second" {
					answering.Go(func() {
						for _, b := range retSubmitPDU(RetSubmit{Seq: 1, Actual: 18}, fakeDescriptors().Raw().Device) {
							if _, err := conn.Write([]byte{b}); err != nil {
								return
							}
							time.Sleep(time.Second)
						}
					})
				}
				ctx, want := t.Context(), DefaultEnumerationTimeout
				if timeout > 0 {
					want = timeout
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeoutCause(ctx, timeout, os.ErrDeadlineExceeded)
					defer cancel()
				}
				start := time.Now()
				_, err := NewImporter(ctx, theirs, benchDevID, usb.SpeedHigh, nil)
				must.Is(t, err, os.ErrDeadlineExceeded)
				if d := time.Since(start); d != want {
					t.Errorf("returned after %v, want %v", d, want)
				}
			})
		})
	}
}

// TestImporterPeerNeverReads shows that Submit does not wait for such a peer.
func TestImporterPeerNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := importPeer(t, pairs["pipe"], ImportOptions{Limits: Limits{Bytes: 80 << 10, URBs: 100}})
		var all []*submitted
		for range 3 {
			all = append(all, p.submit(bulkOutURB(20<<10)))
		}
		u := bulkOutURB(20 << 10)
		must.Is(t, p.imp.Submit(&u), usb.ErrTooMany)
		for len(all) < 100 {
			all = append(all, p.submit(bulkInURB(0)))
		}
		u = bulkInURB(0)
		must.Is(t, p.imp.Submit(&u), usb.ErrTooMany)
		<-p.imp.Gone()
		must.Is(t, p.imp.Err(), errNotReading)
		for _, u := range all {
			<-u.done
		}
	})
}

// TestImporterAnswerBeforeData is the peer that answers a transfer whose data
// it has not taken: its buffer is still being read.
func TestImporterAnswerBeforeData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := importPeer(t, pairs["pipe"], ImportOptions{})
		u := p.submit(bulkOutURB(20 << 10))
		seq := p.recvCmdSubmit().Seq
		p.send(retSubmitPDU(RetSubmit{Seq: seq, Actual: 20 << 10}, nil))
		synctest.Wait()
		select {
		case <-u.done:
			t.Fatal("completed before its data was sent")
		default:
		}
		p.recv(20 << 10)
		if <-u.done; u.Status != usb.StatusOK {
			t.Errorf("transfer ended with %v", u.Status)
		}
		p.works()
	})
}
