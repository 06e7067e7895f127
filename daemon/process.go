//go:build linux

package daemon

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/usbns/usbns/control"
)

// An owner is a container that a later daemon can tell from another one whose
// process has the same number.
type owner struct {
	control.Container
	// Started is when its process did, in ticks since Boot.
	Started uint64 `json:"started"`
	Boot    string `json:"boot"`
}

func ownerOf(in control.Container) (owner, error) {
	o := owner{Container: in}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return o, err
	}
	o.Boot = strings.TrimSpace(string(boot))
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", in.PID))
	if err != nil {
		return o, err
	}
	o.Started, err = startTime(string(stat))
	return o, err
}

// startTime reads field 22 of a process's stat file (proc_pid_stat(5)). Field 2
// may hold anything and ends with the last parenthesis.
func startTime(stat string) (uint64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const third, wanted = 3, 22
	if len(fields) <= wanted-third {
		return 0, fmt.Errorf("%.40q is no state of a process", stat)
	}
	return strconv.ParseUint(fields[wanted-third], 10, 64)
}

// still returns an error if the process is not the one it was.
func (o owner) still() error {
	now, err := ownerOf(o.Container)
	if err != nil {
		return err
	}
	if now != o {
		return fmt.Errorf("process %d is another one than it was", o.PID)
	}
	return nil
}
