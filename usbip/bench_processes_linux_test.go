package usbip

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/usbns/usbns/usb"
)

// BenchmarkProcesses is the other topology: server and client in a process and
// on a CPU of their own each, as between two machines.
func BenchmarkProcesses(b *testing.B) {
	pin(b)
	for name, w := range wireLoads {
		b.Run("exporter/"+name, func(b *testing.B) {
			b.SetBytes(w.bytes)
			ours := newBareClient(configured(b, dialServer(b, "session")), w.request, w.reply, w.inFlight)
			ours.distinctSeqs()
			bare := newBareClient(dialServer(b, name), w.request, w.reply, w.inFlight)
			compare(b, func(n int) { ours.run(b, n) }, func(n int) { bare.run(b, n) })
		})
		b.Run("importer/"+name, func(b *testing.B) {
			b.SetBytes(w.bytes)
			i, err := NewImporter(b.Context(), dialServer(b, name), benchDevID, usb.SpeedHigh, &ImportOptions{Descriptors: fakeDescriptors()})
			must(b, err)
			defer i.Close()
			i.endpoints.Observe(usb.SetConfiguration(1), usb.StatusOK)
			ours := newPump(i, w.inFlight, w.urb)
			bare := newBareClient(dialServer(b, name), w.request, w.reply, w.inFlight)
			compare(b, func(n int) { ours.run(b, n) }, func(n int) { bare.run(b, n) })
		})
	}
}

// A wireLoad is a kind of transfer, as a URB and as messages.
type wireLoad struct {
	urb      usb.URB
	request  []byte
	reply    int // its size
	inFlight int
	bytes    int64
}

var wireLoads = map[string]wireLoad{
	"control,1-in-flight":  controlLoad(1),
	"control,32-in-flight": controlLoad(32),
	"bulk-in":              {bulkInURB(bulkSize), submitPDU(1, bulkIn, usb.Setup{}, nil, bulkSize), HeaderSize + bulkSize, 4, bulkSize},
	"bulk-out":             {bulkOutURB(bulkSize), submitPDU(1, bulkOut, usb.Setup{}, make([]byte, bulkSize), bulkSize), HeaderSize, 4, bulkSize},
}

func controlLoad(inFlight int) wireLoad {
	urb := usb.URB{Endpoint: usb.DirIn, Setup: usb.GetDescriptor(usb.DescDevice, 0, 0, 18), Buffer: make([]byte, 18)}
	return wireLoad{urb, control18(), HeaderSize + 18, inFlight, 0}
}

// pin keeps this process on the second CPU, until the benchmark is over.
func pin(b *testing.B) {
	cpus := runtime.NumCPU()
	if cpus < 2 {
		b.Skip("needs two CPUs")
	}
	move := func(to string) {
		out, err := exec.Command("taskset", "-a", "-c", "-p", to, strconv.Itoa(os.Getpid())).CombinedOutput()
		if err != nil {
			b.Skipf("taskset: %v: %s", err, out)
		}
	}
	move("1")
	procs := runtime.GOMAXPROCS(1)
	b.Cleanup(func() {
		runtime.GOMAXPROCS(procs)
		move(fmt.Sprintf("0-%d", cpus-1))
	})
}

// dialServer starts this program as a server on the first CPU.
func dialServer(b *testing.B, kind string) net.Conn {
	b.Helper()
	cmd := exec.Command("taskset", "-c", "0", os.Args[0])
	cmd.Env = append(os.Environ(), "USBIP_TEST_SERVER="+kind)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	must(b, err)
	conn, err := net.Dial("tcp", strings.TrimSpace(addr))
	must(b, err)
	b.Cleanup(func() { conn.Close() })
	return conn
}

// TestMain lets the test program be the server of BenchmarkProcesses.
func TestMain(m *testing.M) {
	kind := os.Getenv("USBIP_TEST_SERVER")
	if kind == "" {
		os.Exit(m.Run())
	}
	if err := serve(kind); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(kind string) error {
	runtime.GOMAXPROCS(1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	if w, ok := wireLoads[kind]; ok {
		bareServer(conn, len(w.request), retFor(len(w.urb.Buffer), w.reply-HeaderSize))
		return nil
	}
	dev := newFakeDevice()
	dev.respond = atOnce
	return ServeDevice(context.Background(), conn, benchDevID, dev, nil)
}
