//go:build linux

package container

import (
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

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
