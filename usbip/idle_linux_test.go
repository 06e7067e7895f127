package usbip

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"

	"github.com/usbns/usbns/internal/benchtable"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// BenchmarkIdle tells what an idle device costs, both of its ends together:
// resident memory for an Importer and the session that serves it over
// loopback, after each has moved some data, and the threads of the process.
func BenchmarkIdle(b *testing.B) {
	n := 10000
	var files syscall.Rlimit
	must.OK(b, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	n = min(n, int(files.Cur)/2-64)
	for range b.N {
		before := resident(b)
		ctx, cancel := context.WithCancel(b.Context())
		var serving sync.WaitGroup
		dev := newFakeDevice()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must.OK(b, err)
		all := make([]*Importer, n)
		for k := range all {
			conn, err := net.Dial("tcp", l.Addr().String())
			must.OK(b, err)
			theirs, err := l.Accept()
			must.OK(b, err)
			serving.Go(func() { ServeDevice(ctx, theirs, benchDevID, dev, nil) })
			all[k], err = NewImporter(ctx, conn, benchDevID, usb.SpeedHigh, nil)
			must.OK(b, err)
			configure(b, all[k])
			u := bulkInURB(4096)
			must.OK(b, usb.Do(ctx, all[k], &u))
		}
		b.ReportMetric(float64(n), "devices")
		benchtable.Report(b, float64(resident(b)-before)/float64(n)/1024, 16, "KiB/device")
		tasks, err := os.ReadDir("/proc/self/task")
		must.OK(b, err)
		benchtable.Report(b, float64(len(tasks)), 100, "threads")
		for _, i := range all {
			i.Close()
		}
		cancel()
		serving.Wait()
		l.Close()
	}
}

// resident returns the memory of this process, without what is free.
func resident(tb testing.TB) int {
	tb.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	must.OK(tb, err)
	var size, rss int
	_, err = fmt.Sscan(string(b), &size, &rss)
	must.OK(tb, err)
	return rss * os.Getpagesize()
}
