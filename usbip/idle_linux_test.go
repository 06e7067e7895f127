package usbip

import (
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"testing"

	"github.com/usbns/usbns/usb"
)

// BenchmarkIdle tells what an idle device costs, both of its ends together:
// resident memory for an Importer and the session that serves it over
// loopback, after each has moved some data, and the threads of the process.
func BenchmarkIdle(b *testing.B) {
	n := 10000
	var files syscall.Rlimit
	must(b, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	n = min(n, int(files.Cur)/2-64)
	for range b.N {
		debug.FreeOSMemory()
		before := resident(b)
		dev := newFakeDevice()
		var all []*Importer
		for range n {
			conn := startSession(b, dev)
			i, err := NewImporter(b.Context(), conn, benchDevID, usb.SpeedHigh, nil)
			must(b, err)
			configure(b, i)
			u := bulkInURB(4096)
			must(b, usb.Do(b.Context(), i, &u))
			all = append(all, i)
		}
		debug.FreeOSMemory()
		b.ReportMetric(float64(resident(b)-before)/float64(n)/1024, "KiB/device")
		b.ReportMetric(float64(n), "devices")
		tasks, err := os.ReadDir("/proc/self/task")
		must(b, err)
		b.ReportMetric(float64(len(tasks)), "threads")
		for _, i := range all {
			i.Close()
		}
	}
}

func resident(tb testing.TB) int {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	must(tb, err)
	var size, rss int
	_, err = fmt.Sscan(string(b), &size, &rss)
	must(tb, err)
	return rss * os.Getpagesize()
}
