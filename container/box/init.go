//go:build linux

package box

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Main is the first process of a box, and what else runs there before the
// command does. It returns the exit status.
func Main() int {
	runtime.LockOSThread()
	status, err := 0, error(nil)
	switch {
	case len(os.Args) > 1 && os.Args[1] == "network":
		err = ownNetwork()
	case len(os.Args) > 2 && os.Args[1] == "exec":
		err = become(os.Args[2:])
	default:
		status, err = first()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "usbns: error:", err)
		return 126
	}
	return status
}

// ownNetwork sets lo up and keeps the namespace until its pipe is closed.
func ownNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := ioctl(fd, unix.SIOCSIFFLAGS, unsafe.Pointer(request)); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	if _, err := os.Stdout.Write([]byte("\n")); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

// first is the box's process 1. What it says in the place of the expected is why
// it ends.
func first() (status int, err error) {
	in, out := os.NewFile(3, "orders"), os.NewFile(4, "answers")
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	say := func(text string) { fmt.Fprintln(out, strings.ReplaceAll(text, "\n", "; ")) }
	// Who may look into this process sees what is not for the box.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	lines := bufio.NewReader(in)
	text, err := lines.ReadBytes('\n')
	if err != nil {
		return 0, nil // who started it is gone
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		return 0, err
	}
	if err := furnish(o); err != nil {
		say(err.Error())
		return 126, nil
	}
	say("covered")
	if line, err := lines.ReadString('\n'); err != nil || line != "run\n" {
		return 0, nil
	}
	cmd, err := startCommand(o)
	if err != nil {
		say(err.Error())
		return 127, nil
	}
	say("runs")
	go func() {
		_, _ = io.Copy(io.Discard, in)
		os.Exit(1) // who started it is gone, and the kernel ends the rest
	}()
	go forward(signals, cmd.Process.Pid)
	return reap(cmd.Process.Pid), nil
}

// forward passes signals on. What comes from the terminal has reached the command
// as well.
func forward(signals <-chan os.Signal, pid int) {
	for s := range signals {
		if s == unix.SIGTERM || s == unix.SIGHUP {
			_ = unix.Kill(pid, s.(syscall.Signal)) // it may have ended
		}
	}
}

// reap waits for all processes until that of the command has ended.
func reap(command int) int {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 126
		case pid != command:
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}

// startCommand starts the command in a mount namespace below this one.
func startCommand(o order) (*exec.Cmd, error) {
	path, err := exec.LookPath(o.Argv[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{InitName, "exec", path}, o.Argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if o.UserNS != 0 {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(o.UserNS), Size: 1 << 16}}
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{}
	}
	return cmd, cmd.Start()
}

// become turns this process into the command.
func become(argv []string) error {
	// What is mounted above spreads to here, and nothing the other way. Where
	// there is a user namespace the kernel has done it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts from spreading: %w", err)
	}
	own, err := inUserNamespace()
	if err != nil {
		return err
	}
	if !own {
		if err := dropCapabilities(); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
	}
	return fmt.Errorf("run %s: %w", argv[1], unix.Exec(argv[0], argv[1:], os.Environ()))
}

// inUserNamespace tells whether not every user is himself.
func inUserNamespace() (bool, error) {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	return strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295", nil
}

// kept are the capabilities of a command without a user namespace.
const kept = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FSETID | 1<<unix.CAP_FOWNER | 1<<unix.CAP_MKNOD |
	1<<unix.CAP_NET_RAW | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_KILL | 1<<unix.CAP_AUDIT_WRITE

func dropCapabilities() error {
	for c := range 64 {
		if kept&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel has no more
		}
		if err != nil {
			return err
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	data[0] = unix.CapUserData{Effective: kept & 0xffffffff, Permitted: kept & 0xffffffff}
	data[1] = unix.CapUserData{Effective: kept >> 32, Permitted: kept >> 32}
	return unix.Capset(&head, &data[0])
}
