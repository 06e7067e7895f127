package usbip

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// TestQueueNeverEmpty shows that a peer that is always a little behind does not
// make the queue grow.
func TestQueueNeverEmpty(t *testing.T) {
	var l link
	l.limits = Limits{}.orDefaults()
	first := getBuffer(1)
	l.push(first)
	for range 10000 {
		l.push(getBuffer(1))
		l.pop().free()
	}
	if n := cap(l.queue); n > 16 {
		t.Errorf("the queue has room for %d", n)
	}
}

// TestHoldCollects holds back what an Importer sends until it is released as
// often as it was held.
func TestHoldCollects(t *testing.T) {
	must.NotLeak(t)
	p := importPeer(t, tcpPair, ImportOptions{})
	p.imp.Hold()
	p.imp.Hold()
	var all []*submitted
	for range 3 {
		all = append(all, p.submit(bulkInURB(0)))
	}
	p.imp.Release()
	p.imp.mu.Lock()
	if p.imp.queued != 3*HeaderSize {
		t.Errorf("%d bytes wait", p.imp.queued)
	}
	p.imp.mu.Unlock()
	p.imp.Release()
	for range all {
		p.send(retSubmitPDU(RetSubmit{Seq: p.recvCmdSubmit().Seq}, nil))
	}
	for _, u := range all {
		<-u.done
	}
	p.works()
}

// TestWatchSurroundsCompletions has answers come together: those who watch hear of
// it before the first completes, and when all have.
func TestWatchSurroundsCompletions(t *testing.T) {
	must.NotLeak(t)
	p := importPeer(t, tcpPair, ImportOptions{})
	var held, most atomic.Int32
	over := make(chan struct{}, 64)
	stop := p.imp.Watch(func() { held.Add(1) }, func() { held.Add(-1); over <- struct{}{} })
	p.works() // it may have been waiting already
	const n = 8
	var answers []byte
	for range n {
		u := bulkInURB(0)
		u.Complete = func(*usb.URB) { most.Store(max(most.Load(), held.Load())) }
		must.OK(t, p.imp.Submit(&u))
		answers = append(answers, retSubmitPDU(RetSubmit{Seq: p.recvCmdSubmit().Seq}, nil)...)
	}
	p.send(answers)
	for held.Load() != 0 || most.Load() == 0 {
		<-over
	}
	if most.Load() != 1 {
		t.Errorf("held %d times at once", most.Load())
	}
	stop()
	p.works()
}

// TestBatchesAreBalanced exports an Importer: when its session is over nothing is
// held back that anybody submits.
func TestBatchesAreBalanced(t *testing.T) {
	must.NotLeak(t)
	far := &Exporter{}
	must.OK(t, far.Add("1-1", newFakeDevice()))
	middle := importFrom(t, startExporter(t, far), "1-1", nil)
	near := &Exporter{}
	must.OK(t, near.Add("1-1", middle))
	addr := startExporter(t, near)
	for range 3 {
		i := importFrom(t, addr, "1-1", nil)
		configure(t, i)
		newPump(i, 8, bulkInURB(100)).run(t, 500)
		must.OK(t, i.Close())
		must.OK(t, near.Remove(t.Context(), "1-1"))
		configure(t, middle)
		newPump(middle, 8, bulkInURB(100)).run(t, 500)
		if n := len(middle.batches); n != 0 {
			t.Errorf("%d watch an importer that nobody uses", n)
		}
		must.OK(t, near.Add("1-1", middle))
	}
}

// TestReadsInAnyPieces gives the reader the same bytes in every size of piece.
func TestReadsInAnyPieces(t *testing.T) {
	input := make([]byte, 50e3)
	for i := range input {
		input[i] = byte(i * 7)
	}
	for _, piece := range []int{1, 47, 48, 49, 4095, chunkSize, len(input)} {
		synctest.Test(t, func(t *testing.T) {
			conn, theirs := net.Pipe()
			go func() {
				for b := input; len(b) > 0; b = b[min(piece, len(b)):] {
					conn.Write(b[:min(piece, len(b))])
				}
				conn.Close()
			}()
			var l link
			l.init(theirs, Limits{})
			var got []byte
			for _, n := range []int{HeaderSize, 10, 20e3, HeaderSize, 0, 5000} {
				b, err := l.next(HeaderSize)
				must.OK(t, err)
				got = append(got, b...)
				data := make([]byte, n)
				must.OK(t, l.readFull(data))
				got = append(got, data...)
			}
			must.OK(t, l.discard(10e3))
			if !bytes.Equal(got, input[:len(got)]) {
				t.Errorf("in pieces of %d something else is read", piece)
			}
			rest := make([]byte, len(input)-len(got)-10e3)
			must.OK(t, l.readFull(rest))
			if !bytes.Equal(rest, input[len(input)-len(rest):]) {
				t.Errorf("in pieces of %d something else follows", piece)
			}
			if _, err := l.next(1); err != io.EOF {
				t.Errorf("at the end: %v", err)
			}
			l.fail(io.EOF)
			l.active.Wait()
		})
	}
}
