//go:build linux

package runtimestest

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// CheckLeaks fails the test if it leaves mounts, cgroups or processes. It looks
// at the whole guest, where nothing but the test runs, after everything that is
// registered with the test later has been cleaned up.
func CheckLeaks(t *testing.T) {
	t.Helper()
	before := leftovers(t)
	t.Cleanup(func() {
		// Killed processes and the mounts of their namespaces go in their own time.
		var more []string
		for start := time.Now(); time.Since(start) < patience; time.Sleep(10 * time.Millisecond) {
			more = slices.DeleteFunc(leftovers(t), func(s string) bool { return slices.Contains(before, s) })
			if len(more) == 0 {
				return
			}
		}
		t.Errorf("left: %s", strings.Join(more, ", "))
	})
}

func leftovers(t *testing.T) (all []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		all = append(all, "mount "+strings.Fields(line)[4])
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() != "lxc.pivot" { // LXC keeps that one for good
			all = append(all, "cgroup "+path)
		}
		return nil // one that goes meanwhile is not left
	})
	if err != nil {
		t.Fatal(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range processes {
		// Kernel threads and those that have ended have no command line.
		line, err := os.ReadFile(dir + "/cmdline")
		if err == nil && len(line) > 0 {
			all = append(all, "process "+filepath.Base(dir)+" "+strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " "))
		}
	}
	return all
}
