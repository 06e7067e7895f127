//go:build linux

package benchtable

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"
)

// chunk is how much is read at once, where that is more than a message.
const chunk = 16 << 10

// Echo answers each request of that size with one reply, which must stay good
// until the next one is asked for. While more requests are at hand it collects
// replies, and sends them in one write.
func Echo(conn net.Conn, size int, reply func(request []byte) []byte) {
	r := bufio.NewReaderSize(conn, max(chunk, size))
	req := make([]byte, size)
	var out []byte
	for {
		if _, err := io.ReadFull(r, req); err != nil {
			return
		}
		out = append(out, reply(req)...)
		if r.Buffered() >= size {
			continue
		}
		if _, err := conn.Write(out); err != nil {
			return
		}
		out = out[:0]
	}
}

// A Client keeps a number of requests in flight, each with memory of its own,
// as URBs have.
type Client struct {
	tb             testing.TB
	conn           net.Conn
	r              *bufio.Reader
	out, in        []byte // one after the other
	nextOut        int
	request, reply int // sizes
}

// NewClient makes the requests and expects replies of that size.
func NewClient(tb testing.TB, conn net.Conn, request []byte, replySize, inFlight int) *Client {
	return &Client{
		tb: tb, conn: conn, r: bufio.NewReaderSize(conn, chunk),
		out: bytes.Repeat(request, inFlight), in: make([]byte, inFlight*replySize),
		request: len(request), reply: replySize,
	}
}

// Requests returns the requests in flight, to be changed before the first Run.
func (c *Client) Requests() [][]byte {
	var all [][]byte
	for b := c.out; len(b) > 0; b = b[c.request:] {
		all = append(all, b[:c.request])
	}
	return all
}

// Run makes n round trips.
func (c *Client) Run(n int) {
	c.tb.Helper()
	inFlight := len(c.out) / c.request
	sent, send := 0, min(n, inFlight)
	for got := 0; got < n; {
		c.send(send)
		sent += send
		for send = 0; send == 0 || c.r.Buffered() >= c.reply; send++ {
			at := got % inFlight * c.reply
			if _, err := io.ReadFull(c.r, c.in[at:at+c.reply]); err != nil {
				c.tb.Fatal(err)
			}
			if got++; got == n {
				break
			}
		}
		send = min(send, n-sent)
	}
}

func (c *Client) send(requests int) {
	c.tb.Helper()
	for n := requests * c.request; n > 0; {
		k := min(n, len(c.out)-c.nextOut)
		if _, err := c.conn.Write(c.out[c.nextOut : c.nextOut+k]); err != nil {
			c.tb.Fatal(err)
		}
		n -= k
		c.nextOut = (c.nextOut + k) % len(c.out)
	}
}
