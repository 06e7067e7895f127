package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Host is where a machine tells what devices can do to it. The zero Host is
// this machine.
type Host struct {
	Proc    string // default: /proc
	Console string // a virtual terminal's file; default: /dev/tty0, the one in front
	Modules string // depmod's directory; default: /lib/modules/RELEASE of the kernel
}

// KeyboardSafe returns nil where an attached keyboard can do nothing to the
// host: its system requests are off (Alt+SysRq+B resets a machine at once) and
// no console listens. Otherwise the error says what has to be done.
func (h Host) KeyboardSafe() error {
	return errors.Join(h.sysrqOff(), h.consoleOff())
}

func (h Host) proc(name string) string {
	if h.Proc == "" {
		return filepath.Join("/proc", name)
	}
	return filepath.Join(h.Proc, name)
}

func (h Host) sysrqOff() error {
	const mend = "keyboards could reset this host by Alt+SysRq: sysctl kernel.sysrq=0"
	b, err := os.ReadFile(h.proc("sys/kernel/sysrq"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without them
	}
	if err != nil {
		return fmt.Errorf("%s (%w)", mend, err)
	}
	if value := strings.TrimSpace(string(b)); value != "0" {
		return fmt.Errorf("%s (it is %s)", mend, value)
	}
	return nil
}

// consoleOff looks for the handler by which the console hears every keyboard
// (drivers/tty/vt/keyboard.c), and for the mode in which it does not listen.
func (h Host) consoleOff() error {
	const mend = "keyboards would type on this host's console, where Ctrl+Alt+Del restarts it: " +
		"turn it off with kbd_mode's K_OFF, as a graphical session does, or use a kernel without virtual terminals"
	b, err := os.ReadFile(h.proc("bus/input/handlers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without input devices
	}
	if err != nil {
		return fmt.Errorf("%s (%w)", mend, err)
	}
	if !strings.Contains(string(b), "Name=kbd\n") && !strings.Contains(string(b), "Name=kbd ") {
		return nil
	}
	console := h.Console
	if console == "" {
		console = "/dev/tty0"
	}
	f, err := os.OpenFile(console, os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%s (%w)", mend, err)
	}
	defer f.Close()
	const getMode, off = 0x4b44, 4 // KDGKBMODE and K_OFF, include/uapi/linux/kd.h
	mode, err := unix.IoctlGetInt(int(f.Fd()), getMode)
	if err != nil {
		return fmt.Errorf("%s (%s: %w)", mend, console, err)
	}
	if mode != off {
		return errors.New(mend)
	}
	return nil
}
