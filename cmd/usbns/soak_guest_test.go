//go:build guest

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/usbns/usbns/internal/runtimestest"
)

// The tests in this file are what "make soak" runs.

// A holding is what a daemon and the kernel hold for containers.
type holding struct{ descriptors, programs, state int }

func countHoldings(t *testing.T, dir string) (h holding) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		line, _ := os.ReadFile(path) // it may have ended
		if strings.Contains(string(line), "usbns\x00daemon\x00") {
			h.descriptors += countEntries(t, filepath.Join(filepath.Dir(path), "fd"))
		}
	}
	h.state = countEntries(t, filepath.Join(dir, "state"))
	for id := ebpf.ProgramID(0); ; h.programs++ {
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, fs.ErrNotExist) {
			return h
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func countEntries(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// awaitHoldings fails the test if more is held than was before.
func awaitHoldings(t *testing.T, dir string, before holding) {
	t.Helper()
	var now holding
	waitUntil(t, "no more is held than before", func() bool {
		now = countHoldings(t, dir)
		return now == before
	})
}

func TestSoakRun(t *testing.T) {
	runtimestest.CheckLeaks(t)
	const dir, rounds = "/run/usbns-soak", 1000
	startDaemonProcess(t, dir)
	round := func() {
		if got := execute(t, "run", "--run", dir, "--new", "--driver", "user", "--", "true"); got != "" {
			t.Fatalf("usbns run prints %q", got)
		}
	}
	round()
	waitUntil(t, "the first controller is gone", func() bool {
		return execute(t, "controller", "list", "--run", dir, "--json") == "[]\n"
	})
	before := countHoldings(t, dir)
	for i := range rounds {
		round()
		if i%100 == 0 {
			t.Logf("round %d", i)
		}
	}
	awaitHoldings(t, dir, before)
}

func TestSoakRuntimes(t *testing.T) {
	const dir, rounds = "/run/usbns", 20
	startDaemonProcess(t, dir)
	exportDevices(t, "signpad")
	documented(t, "A controller", "own")
	for _, r := range runtimestest.All {
		t.Run(string(r), func(t *testing.T) {
			runtimestest.CheckLeaks(t)
			round := func() {
				c := startWithController(t, r, "own")
				attachTo(t, "own", "1-1", 2)
				c.Stop()
				waitUntil(t, "nothing is attached", func() bool { return inUse(t) == "" })
			}
			round()
			before := countHoldings(t, dir)
			for range rounds {
				round()
			}
			awaitHoldings(t, dir, before)
		})
	}
}
