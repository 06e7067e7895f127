//go:build linux

package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// What f does to its thread, nobody else gets to see.
func TestOnThread(t *testing.T) {
	for range 20 {
		var tid int
		err := onThread(func() error {
			tid = unix.Gettid()
			return unix.Unshare(unix.CLONE_FS | unix.CLONE_FILES)
		})
		if err != nil || tid == os.Getpid() {
			t.Fatalf("thread %d of process %d: %v", tid, os.Getpid(), err)
		}
		for { // the thread ends after onThread has returned
			_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSharedSysIsRefused(t *testing.T) {
	parse := func(text string) []*mountinfo.Info {
		infos, err := mountinfo.GetMountsFromReader(strings.NewReader(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return infos
	}
	host := parse("22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n23 22 0:21 / /sys rw shared:7 - sysfs sysfs rw\n")
	for text, refused := range map[string]bool{
		"50 1 8:1 / / rw - ext4 /dev/sda1 rw\n51 50 0:21 / /sys rw - sysfs sysfs rw\n":            false,
		"50 1 8:1 / / rw - ext4 /dev/sda1 rw\n51 50 0:21 / /sys rw master:7 - sysfs sysfs rw\n":   false,
		"50 1 8:1 / / rw - ext4 /dev/sda1 rw\n51 50 0:21 / /sys rw shared:9 - sysfs sysfs rw\n":   false,
		"50 1 8:1 / / rw - ext4 /dev/sda1 rw\n51 50 0:21 / /sys rw shared:7 - sysfs sysfs rw\n":   true,
		"50 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n51 50 0:21 / /sys rw - sysfs sysfs rw\n":   false,
		"50 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n51 50 0:21 / /system rw - tmpfs tmpfs r\n": true,
	} {
		if err := separate(host, parse(text)); refused != (err != nil) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
