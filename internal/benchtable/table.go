//go:build linux

// Package benchtable is for benchmarks that measure something beside a limit:
// how near it comes to a bare program that moves the same number and size of
// messages, in the same run and the same topology.
//
// Times of different runs on one machine differ by more than what one wants to
// see, since others use it too. So [Compare] runs subject and limit in short
// rounds, in turns, and takes the median of the rounds' ratios: what slows the
// machine down for a while slows both. [Report] is for figures that have an aim
// and no limit, like memory.
//
// The topology is that of two machines: a [Server] is a process of its own on
// one CPU, with the benchmark on another (see [Pin]). [Echo] and [NewClient] are
// the two sides of the bare program.
//
// A package's TestMain calls [Main], which prints a table of all that was
// measured below what go test prints of each benchmark:
//
//	func TestMain(m *testing.M) { os.Exit(benchtable.Main(m, servers)) }
package benchtable

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// round is how long a round lasts, about: many scheduler ticks would let the
// machine change between subject and limit.
const round = 5 * time.Millisecond

// Compare times subject and limit, each of which is told how many operations to
// make, and reports the limit's time divided by the subject's: 1 is as good as
// can be, and aim what it ought to be. The benchmark's own figures are the
// subject's.
func Compare(b *testing.B, aim float64, subject, limit func(n int)) {
	b.Helper()
	b.StopTimer()
	per := calibrate(subject, limit)
	var ratios []float64
	var times [2]time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += per {
		n := min(per, b.N-done)
		var ours, bare time.Duration
		if done/per%2 == 0 {
			bare, ours = timed(limit, n), timedBy(b, subject, n)
		} else {
			ours, bare = timedBy(b, subject, n), timed(limit, n)
		}
		times[0] += ours
		times[1] += bare
		ratios = append(ratios, float64(bare)/float64(ours))
	}
	slices.Sort(ratios)
	ratio := ratios[len(ratios)/2]
	b.ReportMetric(ratio, "of-limit")
	perOp := func(d time.Duration) string { return (d / time.Duration(b.N)).String() }
	table.add(b.Name(), perOp(times[0]), perOp(times[1]), fmt.Sprintf("%.2f", ratio), fmt.Sprintf(">= %.2f", aim))
}

// calibrate returns how many operations make a round.
func calibrate(subject, limit func(n int)) int {
	for n := 1; ; n *= 2 {
		timed(limit, n)
		if timed(subject, n) > round || n >= 1<<20 {
			return n
		}
	}
}

func timed(f func(n int), n int) time.Duration {
	start := time.Now()
	f(n)
	return time.Since(start)
}

// timedBy has the benchmark's clock run as well.
func timedBy(b *testing.B, f func(n int), n int) time.Duration {
	b.StartTimer()
	defer b.StopTimer()
	return timed(f, n)
}

// Report reports a figure that ought to be at most so much.
func Report(b *testing.B, got, most float64, unit string) {
	b.Helper()
	b.ReportMetric(got, unit)
	table.add(b.Name()+" "+unit, fmt.Sprintf("%.6g", got), "", "", fmt.Sprintf("<= %.6g", most))
}

// rows are what a run has measured. A benchmark is run several times with ever
// more operations; the last time counts.
type rows struct {
	mu    sync.Mutex
	names []string
	cells map[string][]string
}

var table rows

func (r *rows) add(name string, cells ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name = strings.TrimPrefix(name, "Benchmark")
	if r.cells == nil {
		r.cells = make(map[string][]string)
	}
	if r.cells[name] == nil {
		r.names = append(r.names, name)
	}
	r.cells[name] = cells
}

func (r *rows) print(w io.Writer) {
	if len(r.names) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "\nmeasured\tis\tlimit\tratio\taim")
	for _, name := range r.names {
		fmt.Fprintf(tw, "%s\t%s\n", name, strings.Join(r.cells[name], "\t"))
	}
	tw.Flush()
	fmt.Fprintln(w)
}

// Main runs the tests and benchmarks of a package and prints its table. In a
// process that [Server] has started it is that server instead.
func Main(m *testing.M, servers map[string]Serve) int {
	if serve := servers[os.Args[0]]; serve != nil {
		if err := beServer(serve); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	code := m.Run()
	table.print(os.Stdout)
	return code
}
