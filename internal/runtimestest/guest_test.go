//go:build guest

//vmexec:tree runtimes
//vmexec:modules overlay

package runtimestest_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/usbns/usbns/internal/runtimestest"
)

func TestGuestRuntimes(t *testing.T) {
	for _, r := range runtimestest.All {
		for _, userNS := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/userns=%v", r, userNS), func(t *testing.T) {
				runtimestest.CheckLeaks(t)
				c := runtimestest.Start(t, r, runtimestest.Config{Name: "box", UserNS: userNS})
				out, err := c.Run("sh", "-c", "id -u; cat /proc/1/comm; uname -n; stat -f -c %T /sys")
				if err != nil || out != "0\nsleep\nbox\nsysfs\n" {
					t.Errorf("inside: %v\n%s", err, out)
				}
				want := "0"
				if userNS {
					want = fmt.Sprint(runtimestest.SubID)
				}
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
				if err != nil || !strings.Contains(string(status), "\nUid:\t"+want+"\t") {
					t.Errorf("outside: %v\n%s", err, status)
				}
			})
		}
	}
}
