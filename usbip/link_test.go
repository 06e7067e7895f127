package usbip

import (
	"bytes"
	"io"
	"net"
	"testing"
	"testing/synctest"
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
				must(t, err)
				got = append(got, b...)
				data := make([]byte, n)
				must(t, l.readFull(data))
				got = append(got, data...)
			}
			must(t, l.discard(10e3))
			if !bytes.Equal(got, input[:len(got)]) {
				t.Errorf("in pieces of %d something else is read", piece)
			}
			rest := make([]byte, len(input)-len(got)-10e3)
			must(t, l.readFull(rest))
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
