//go:build linux

package worker_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
)

// relayName is argv[0] of a process that does what is left of a worker if it
// looks at nothing: it copies between a connection and a socketpair.
const relayName = "relay"

const (
	relayExporterFD = 3
	relayKernelFD   = 4
)

func beRelay() int {
	exporter, err := net.FileConn(os.NewFile(relayExporterFD, "exporter"))
	if err != nil {
		return 1
	}
	kernel, err := net.FileConn(os.NewFile(relayKernelFD, "kernel"))
	if err != nil {
		return 1
	}
	done := make(chan struct{}, 2)
	relay := func(to, from net.Conn) {
		// Not by splice(2), as io.Copy would: a worker has to see the bytes.
		io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 128<<10))
		done <- struct{}{}
	}
	go relay(kernel, exporter)
	go relay(exporter, kernel)
	<-done // and the other ends with the process
	return 0
}

// startRelay returns the other end of the socketpair.
func startRelay(b *testing.B, exporter net.Conn) net.Conn {
	b.Helper()
	f, err := exporter.(*net.TCPConn).File()
	must.OK(b, err)
	defer f.Close()
	exporter.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.OK(b, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "relay's")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = relayName
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{relayExporterFD - 3: f, relayKernelFD - 3: theirs}
	must.OK(b, cmd.Start())
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	conn, err := net.FileConn(ours)
	must.OK(b, err)
	b.Cleanup(func() { conn.Close() })
	return conn
}
