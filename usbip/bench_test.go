package usbip

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/usbns/usbns/usb"
)

// The benchmarks set each role beside a bare program that moves the same
// number and size of messages over the same kind of connection with the same
// number in flight, in the same process and in turns; "of-limit" is the
// bare program's time divided by ours.

// A bareServer answers each request of reqSize bytes with one reply.
func bareServer(conn net.Conn, reqSize int, reply func(request []byte) []byte) {
	r := bufio.NewReaderSize(conn, max(chunkSize, reqSize))
	req := make([]byte, reqSize)
	var out []byte
	for {
		if _, err := io.ReadFull(r, req); err != nil {
			return
		}
		out = append(out, reply(req)...)
		if r.Buffered() >= reqSize {
			continue
		}
		if _, err := conn.Write(out); err != nil {
			return
		}
		out = out[:0]
	}
}

// A bareClient keeps a number of requests in flight, each with memory of its
// own, as URBs have.
type bareClient struct {
	conn           net.Conn
	r              *bufio.Reader
	out, in        []byte // one after the other
	nextOut        int
	request, reply int // sizes
}

func newBareClient(conn net.Conn, request []byte, replySize, inFlight int) *bareClient {
	return &bareClient{
		conn: conn, r: bufio.NewReaderSize(conn, chunkSize),
		out: bytes.Repeat(request, inFlight), in: make([]byte, inFlight*replySize),
		request: len(request), reply: replySize,
	}
}

// run makes n round trips.
func (c *bareClient) run(tb testing.TB, n int) {
	inFlight := len(c.out) / c.request
	sent, send := 0, min(n, inFlight)
	for got := 0; got < n; {
		c.send(tb, send)
		sent += send
		for send = 0; send == 0 || c.r.Buffered() >= c.reply; send++ {
			at := got % inFlight * c.reply
			if _, err := io.ReadFull(c.r, c.in[at:at+c.reply]); err != nil {
				tb.Fatal(err)
			}
			if got++; got == n {
				break
			}
		}
		send = min(send, n-sent)
	}
}

func (c *bareClient) send(tb testing.TB, requests int) {
	for n := requests * c.request; n > 0; {
		k := min(n, len(c.out)-c.nextOut)
		if _, err := c.conn.Write(c.out[c.nextOut : c.nextOut+k]); err != nil {
			tb.Fatal(err)
		}
		n -= k
		c.nextOut = (c.nextOut + k) % len(c.out)
	}
}

// compare times ours and bare in turns.
func compare(b *testing.B, ours, bare func(n int)) {
	const turns = 16
	ours(64)
	bare(64)
	var t [2]time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for turn := range turns {
		n := b.N*(turn+1)/turns - b.N*turn/turns
		if n == 0 {
			continue
		}
		start := time.Now()
		ours(n)
		t[0] += time.Since(start)
		b.StopTimer()
		start = time.Now()
		bare(n)
		t[1] += time.Since(start)
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(float64(t[1])/float64(t[0]), "of-limit")
}

// tcpPair returns both ends of a loopback connection.
func tcpPair(tb testing.TB) (net.Conn, net.Conn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(tb, err)
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	must(tb, err)
	b, err := l.Accept()
	must(tb, err)
	tb.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

const benchDevID = 1<<16 | 1

// submitPDU is a CMD_SUBMIT with its OUT data.
func submitPDU(seq uint32, ep usb.Address, setup usb.Setup, data []byte, length int) []byte {
	c := CmdSubmit{Seq: seq, DevID: benchDevID, Endpoint: uint32(ep.Number()), Length: int32(length), Setup: setup.Bytes()}
	if ep.In() {
		c.Direction = DirIn
	}
	b := make([]byte, HeaderSize+len(data))
	c.Put(b)
	copy(b[HeaderSize:], data)
	return b
}

func control18() []byte {
	return submitPDU(1, usb.DirIn, usb.GetDescriptor(usb.DescDevice, 0, 0, 18), nil, 18)
}

// distinctSeqs numbers the requests of a bareClient, as a session wants.
func (c *bareClient) distinctSeqs() {
	for i := 0; i < len(c.out); i += c.request {
		binary.BigEndian.PutUint32(c.out[i+4:], uint32(i+1))
	}
}

// startSession serves dev, configured, on one end of a connection.
func startSession(tb testing.TB, dev usb.Device) net.Conn {
	tb.Helper()
	conn, theirs := tcpPair(tb)
	return serveOn(tb, dev, conn, theirs)
}

func serveOn(tb testing.TB, dev usb.Device, conn, theirs net.Conn) net.Conn {
	tb.Helper()
	done := make(chan error, 1)
	go func() { done <- ServeDevice(tb.Context(), theirs, benchDevID, dev, nil) }()
	tb.Cleanup(func() { conn.Close(); <-done })
	return configured(tb, conn)
}

// configured chooses the configuration of the device behind conn.
func configured(tb testing.TB, conn net.Conn) net.Conn {
	newBareClient(conn, submitPDU(1, 0, usb.SetConfiguration(1), nil, 0), HeaderSize, 1).run(tb, 1)
	return conn
}

// atOnce moves data without looking at it, so that the wire is what is measured.
func atOnce(_ *fakeDevice, u *usb.URB) bool {
	if u.Type == usb.Control {
		return false
	}
	u.Status, u.Actual = usb.StatusOK, len(u.Buffer)
	u.Complete(u)
	return true
}

func benchmarkExporter(b *testing.B, request []byte, replySize, inFlight int) {
	dev := newFakeDevice()
	dev.respond = atOnce
	ours := newBareClient(startSession(b, dev), request, replySize, inFlight)
	ours.distinctSeqs()
	conn, theirs := tcpPair(b)
	reply := make([]byte, replySize)
	go bareServer(theirs, len(request), func([]byte) []byte { return reply })
	bare := newBareClient(conn, request, replySize, inFlight)
	compare(b, func(n int) { ours.run(b, n) }, func(n int) { bare.run(b, n) })
}

func BenchmarkExporterControl(b *testing.B) {
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprintf("inflight=%d", n), func(b *testing.B) {
			benchmarkExporter(b, control18(), HeaderSize+18, n)
		})
	}
}

const bulkSize = 64 << 10

func BenchmarkExporterBulkIn(b *testing.B) {
	b.SetBytes(bulkSize)
	benchmarkExporter(b, submitPDU(1, bulkIn, usb.Setup{}, nil, bulkSize), HeaderSize+bulkSize, 4)
}

func BenchmarkExporterBulkOut(b *testing.B) {
	b.SetBytes(bulkSize)
	benchmarkExporter(b, submitPDU(1, bulkOut, usb.Setup{}, make([]byte, bulkSize), bulkSize), HeaderSize, 4)
}

// A pump keeps a number of URBs in flight at a device.
type pump struct {
	dev       usb.Device
	urbs      []*usb.URB
	left, end int // completions come from one goroutine
	done      chan struct{}
}

func newPump(dev usb.Device, inFlight int, urb usb.URB) *pump {
	p := &pump{dev: dev, done: make(chan struct{}, 1)}
	for range inFlight {
		u := urb
		u.Buffer, u.Packets = make([]byte, len(urb.Buffer)), slices.Clone(urb.Packets)
		u.Complete = p.complete
		p.urbs = append(p.urbs, &u)
	}
	return p
}

func (p *pump) complete(u *usb.URB) {
	if u.Status != usb.StatusOK {
		panic(u.Status)
	}
	if p.end--; p.end == 0 {
		p.done <- struct{}{}
	}
	if p.left > 0 {
		p.left--
		if err := p.dev.Submit(u); err != nil {
			panic(err)
		}
	}
}

func (p *pump) run(tb testing.TB, n int) {
	first := min(n, len(p.urbs))
	p.end, p.left = n, n-first
	for _, u := range p.urbs[:first] {
		must(tb, p.dev.Submit(u))
	}
	<-p.done
}

func benchmarkImporter(b *testing.B, inFlight int, urb usb.URB, request []byte, reply func(request []byte) []byte, replySize int) {
	conn, theirs := tcpPair(b)
	go bareServer(theirs, len(request), reply)
	i, err := NewImporter(b.Context(), conn, benchDevID, usb.SpeedHigh, &ImportOptions{Descriptors: fakeDescriptors()})
	must(b, err)
	b.Cleanup(func() { i.Close() })
	i.endpoints.Observe(usb.SetConfiguration(1), usb.StatusOK)
	ours := newPump(i, inFlight, urb)

	conn, theirs = tcpPair(b)
	go bareServer(theirs, len(request), reply)
	bare := newBareClient(conn, request, replySize, inFlight)
	compare(b, func(n int) { ours.run(b, n) }, func(n int) { bare.run(b, n) })
}

// retFor answers a request with a success of that many bytes.
func retFor(actual, data int) func([]byte) []byte {
	reply := make([]byte, HeaderSize+data)
	return func(req []byte) []byte {
		r := RetSubmit{Seq: binary.BigEndian.Uint32(req[4:]), Actual: int32(actual)}
		r.Put(reply)
		return reply
	}
}

func BenchmarkImporterControl(b *testing.B) {
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprintf("inflight=%d", n), func(b *testing.B) {
			urb := usb.URB{Endpoint: usb.DirIn, Setup: usb.GetDescriptor(usb.DescDevice, 0, 0, 18), Buffer: make([]byte, 18)}
			benchmarkImporter(b, n, urb, control18(), retFor(18, 18), HeaderSize+18)
		})
	}
}

func BenchmarkImporterBulkIn(b *testing.B) {
	b.SetBytes(bulkSize)
	urb := usb.URB{Type: usb.Bulk, Endpoint: bulkIn, Buffer: make([]byte, bulkSize)}
	benchmarkImporter(b, 4, urb, submitPDU(1, bulkIn, usb.Setup{}, nil, bulkSize), retFor(bulkSize, bulkSize), HeaderSize+bulkSize)
}

func BenchmarkImporterBulkOut(b *testing.B) {
	b.SetBytes(bulkSize)
	urb := usb.URB{Type: usb.Bulk, Endpoint: bulkOut, Buffer: make([]byte, bulkSize)}
	benchmarkImporter(b, 4, urb, submitPDU(1, bulkOut, usb.Setup{}, make([]byte, bulkSize), bulkSize), retFor(bulkSize, 0), HeaderSize)
}

// BenchmarkIsochronous streams through both roles: a device at high speed has
// 8,000 packets a second.
func BenchmarkIsochronous(b *testing.B) {
	dev := newFakeDevice()
	i, err := NewImporter(b.Context(), startSession(b, dev), benchDevID, usb.SpeedHigh, nil)
	must(b, err)
	defer i.Close()
	configure(b, i)
	const packets, size = 8, 192
	p := newPump(i, 4, isoInURB(slices.Repeat([]int{size}, packets)...))
	b.SetBytes(packets * size)
	b.ReportAllocs()
	b.ResetTimer()
	p.run(b, b.N)
	b.ReportMetric(packets*float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}
