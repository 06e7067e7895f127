//go:build linux

package runtimestest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// AppArmor's profiles are not loaded in a guest.
const lxcConfig = `
lxc.include = /usr/share/lxc/config/common.conf
%slxc.uts.name = %s
lxc.rootfs.path = dir:%s
lxc.init.cmd = /bin/sleep infinity
lxc.net.0.type = empty
lxc.tty.max = 0
lxc.apparmor.profile = unconfined
`

const lxcUserNS = `lxc.include = /usr/share/lxc/config/userns.conf
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
`

type lxc struct {
	dir, name string
	cfg       Config
}

func (l *lxc) file(name string) string { return filepath.Join(l.dir, name) }

func (l *lxc) start() error {
	userNS := ""
	if l.cfg.UserNS {
		userNS = lxcUserNS
	}
	text := fmt.Sprintf(lxcConfig, userNS, l.name, l.file("rootfs")) + l.cfg.LXC
	if err := os.WriteFile(l.file("config"), []byte(text), 0o644); err != nil {
		return err
	}
	_, err := run(l.dir, "lxc-start", "-n", l.name, "-P", l.dir, "-f", l.file("config"),
		"-p", l.file("monitor"), "-o", l.file("log"), "-l", "INFO", "-d")
	if err != nil {
		log, _ := os.ReadFile(l.file("log")) // not there if it failed early
		return fmt.Errorf("%w\n%s", err, log)
	}
	return nil
}

func (l *lxc) pid() (int, error) {
	out, err := run(l.dir, "lxc-info", "-n", l.name, "-P", l.dir, "-p", "-H")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

func (l *lxc) attach(argv []string) []string {
	return append([]string{"lxc-attach", "-n", l.name, "-P", l.dir, "--clear-env", "--"}, argv...)
}

func (l *lxc) update() error {
	_, err := run(l.dir, "lxc-cgroup", "-n", l.name, "-P", l.dir, "pids.max", "1000")
	return err
}

// stop returns when the monitor has ended, and with it the hooks.
func (l *lxc) stop() error {
	text, err := os.ReadFile(l.file("monitor"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it was never started
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	monitor, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(monitor)
	if _, err := run(l.dir, "lxc-stop", "-n", l.name, "-P", l.dir, "-k"); err != nil {
		return err
	}
	return waitEnd(monitor)
}

// waitEnd waits for a process.
func waitEnd(pidfd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("its monitor has not ended after %v", patience)
		default:
			return nil
		}
	}
}
