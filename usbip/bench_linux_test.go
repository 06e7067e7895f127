package usbip

import (
	"context"
	"encoding/binary"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/usbns/usbns/internal/benchtable"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// The benchmarks set each role beside a bare program that moves the same number
// and size of messages with the same number in flight: see package benchtable.

// A wireLoad is a kind of transfer, as a URB and as messages.
type wireLoad struct {
	name     string
	aim      float64
	urb      usb.URB
	request  []byte
	reply    int // its size
	inFlight int
	bytes    int64
}

const bulkSize = 64 << 10

var wireLoads = []wireLoad{
	controlLoad("control-1", 0.98, 1),
	controlLoad("control-32", 0.80, 32),
	{"bulk-in", 0.80, bulkInURB(bulkSize), submitPDU(1, bulkIn, usb.Setup{}, nil, bulkSize), HeaderSize + bulkSize, 4, bulkSize},
	{"bulk-out", 0.80, bulkOutURB(bulkSize), submitPDU(1, bulkOut, usb.Setup{}, make([]byte, bulkSize), bulkSize), HeaderSize, 4, bulkSize},
}

// controlLoad has the stage of 18 bytes that reads a device descriptor.
func controlLoad(name string, aim float64, inFlight int) wireLoad {
	urb := usb.URB{Endpoint: usb.DirIn, Setup: usb.GetDescriptor(usb.DescDevice, 0, 0, 18), Buffer: make([]byte, 18)}
	return wireLoad{name, aim, urb, control18(), HeaderSize + 18, inFlight, 0}
}

// TestMain lets the test program be the servers of the benchmarks.
func TestMain(m *testing.M) {
	servers := map[string]benchtable.Serve{"session": func(conn net.Conn) error {
		dev := newFakeDevice()
		dev.respond = atOnce
		return ServeDevice(context.Background(), conn, benchDevID, dev, nil)
	}}
	for _, w := range wireLoads {
		servers["bare "+w.name] = func(conn net.Conn) error {
			benchtable.Echo(conn, len(w.request), retFor(len(w.urb.Buffer), w.reply-HeaderSize))
			return nil
		}
	}
	for name, serve := range maps.Clone(servers) {
		servers["relayed "+name] = func(conn net.Conn) error { return relay(conn, name == "session", serve) }
	}
	os.Exit(benchtable.Main(m, servers))
}

// relay stands between conn and a server in this process: as an importer that
// is exported again, or as a bare relay.
func relay(conn net.Conn, device bool, serve benchtable.Serve) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		if far, err := l.Accept(); err == nil {
			serve(far)
		}
	}()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	if device {
		dev, err := NewImporter(context.Background(), near, benchDevID, usb.SpeedHigh, nil)
		if err != nil {
			return err
		}
		return ServeDevice(context.Background(), conn, benchDevID, dev, nil)
	}
	// Without what the two could do with each other, which is to splice.
	type plain struct {
		io.Reader
		io.Writer
	}
	go io.CopyBuffer(plain{Writer: near}, plain{Reader: conn}, make([]byte, chunkSize))
	_, err = io.CopyBuffer(plain{Writer: conn}, plain{Reader: near}, make([]byte, chunkSize))
	return err
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

// retFor answers a request with a success of that many bytes.
func retFor(actual, data int) func([]byte) []byte {
	reply := make([]byte, HeaderSize+data)
	return func(req []byte) []byte {
		r := RetSubmit{Seq: binary.BigEndian.Uint32(req[4:]), Actual: int32(actual)}
		r.Put(reply)
		return reply
	}
}

// bare is the limit of a load.
func (w *wireLoad) bare(b *testing.B) *benchtable.Client {
	return benchtable.NewClient(b, benchtable.Server(b, "bare "+w.name), w.request, w.reply, w.inFlight)
}

// configured chooses the configuration of the device behind conn.
func configured(tb testing.TB, conn net.Conn) net.Conn {
	(&peer{t: tb, conn: conn}).configure()
	return conn
}

func BenchmarkExporter(b *testing.B) {
	benchtable.Pin(b)
	for _, w := range wireLoads {
		b.Run(w.name, func(b *testing.B) {
			b.SetBytes(w.bytes)
			ours := benchtable.NewClient(b, configured(b, benchtable.Server(b, "session")), w.request, w.reply, w.inFlight)
			for i, request := range ours.Requests() {
				edit(request, atSeq, uint32(i+1))
			}
			benchtable.Compare(b, w.aim, ours.Run, w.bare(b).Run)
		})
	}
}

// BenchmarkTwoHops has a relay between the two.
func BenchmarkTwoHops(b *testing.B) {
	benchtable.Pin(b)
	for _, w := range wireLoads {
		b.Run(w.name, func(b *testing.B) {
			b.SetBytes(w.bytes)
			ours := benchtable.NewClient(b, configured(b, benchtable.Server(b, "relayed session")), w.request, w.reply, w.inFlight)
			for i, request := range ours.Requests() {
				edit(request, atSeq, uint32(i+1))
			}
			bare := benchtable.NewClient(b, benchtable.Server(b, "relayed bare "+w.name), w.request, w.reply, w.inFlight)
			benchtable.Compare(b, w.aim, ours.Run, bare.Run)
		})
	}
}

func BenchmarkImporter(b *testing.B) {
	benchtable.Pin(b)
	for _, w := range wireLoads {
		b.Run(w.name, func(b *testing.B) {
			b.SetBytes(w.bytes)
			i, err := NewImporter(b.Context(), benchtable.Server(b, "bare "+w.name), benchDevID, usb.SpeedHigh, &ImportOptions{Descriptors: fakeDescriptors()})
			must.OK(b, err)
			defer i.Close()
			i.endpoints.Observe(usb.SetConfiguration(1), usb.StatusOK)
			ours := newPump(i, w.inFlight, w.urb)
			benchtable.Compare(b, w.aim, func(n int) { ours.run(b, n) }, w.bare(b).Run)
		})
	}
}

// BenchmarkIsochronous streams through both roles what a device at high speed
// can send, 8,000 packets a second: eight of them become ready each millisecond,
// and are lost if no transfer is there to take them.
func BenchmarkIsochronous(b *testing.B) {
	const packets, size, inFlight = 8, 192, 32
	dev := newFakeDevice()
	ready := make(chan *usb.URB, inFlight)
	dev.respond = func(_ *fakeDevice, u *usb.URB) bool {
		if u.Type == usb.Isochronous {
			ready <- u
		}
		return u.Type == usb.Isochronous
	}
	conn, theirs := tcpPair(b)
	var serving sync.WaitGroup
	serving.Go(func() { ServeDevice(b.Context(), theirs, benchDevID, dev, nil) })
	defer serving.Wait()
	i, err := NewImporter(b.Context(), conn, benchDevID, usb.SpeedHigh, nil)
	must.OK(b, err)
	configure(b, i)
	p := newPump(i, inFlight, isoInURB(slices.Repeat([]int{size}, packets)...))
	lost := 0
	pumped := make(chan struct{})
	b.ResetTimer()
	go func() { p.run(b, b.N); close(pumped) }()
	start := time.Now()
	for sent, slot := 0, 1; sent < b.N; slot++ {
		time.Sleep(time.Until(start.Add(time.Duration(slot) * time.Millisecond)))
		select {
		case u := <-ready:
			sent++
			transferAll(u)
		default:
			if sent > 0 {
				lost += packets
			}
		}
	}
	<-pumped
	i.Close()
	b.ReportMetric(packets*float64(b.N)/b.Elapsed().Seconds(), "packets/s")
	benchtable.Report(b, float64(lost), 0, "lost-packets")
}
