package must

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// NotLeak fails the test if it leaves goroutines of this module that were not
// there before. It waits for those that are about to end.
func NotLeak(t testing.TB) {
	t.Helper()
	before := goroutines()
	t.Cleanup(func() {
		for start := time.Now(); ; runtime.Gosched() {
			var left []string
			for id, stack := range goroutines() {
				if _, ok := before[id]; !ok {
					left = append(left, stack)
				}
			}
			if len(left) == 0 {
				return
			}
			if time.Since(start) > Patience {
				t.Errorf("goroutines are left:\n%s", strings.Join(left, "\n\n"))
				return
			}
		}
	})
}

// goroutines returns the stacks of those of this module that are no tests, by
// number.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	ours := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(stack, "usbns/usbns/") && !strings.Contains(stack, "testing.tRunner") && !strings.Contains(stack, "testing.(*B)") {
			id, _, _ := strings.Cut(stack, " [") // goroutine 7 [running]:
			ours[id] = stack
		}
	}
	return ours
}

// Descriptors lists the descriptors that this process has open, and what they
// are. It is for Linux.
func Descriptors(t testing.TB) (open []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	OK(t, err)
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // the directory itself is closed
			open = append(open, e.Name()+" "+target)
		}
	}
	return open
}
