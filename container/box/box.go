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
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/thread"
)

// InitName is the name by which the program becomes [Main].
const InitName = "usbns-init"

// A Config describes a box.
type Config struct {
	// Argv is the command.
	Argv []string
	// Cgroup is the directory of a cgroup for it alone.
	Cgroup string
	// Hidden are directories that are empty in the box.
	Hidden []string
	// UserNS, if not 0, is the first of 65536 users and groups that are those of
	// the box.
	UserNS uint32
	// Stdin, Stdout and Stderr are the command's.
	Stdin, Stdout, Stderr *os.File
}

// A Box is started and has to be waited for.
type Box struct {
	cmd   *exec.Cmd
	pipe  *os.File // its end is the box's
	lines *bufio.Reader
	said  *os.File
}

// order is what the first process is told.
type order struct {
	Argv   []string
	Hidden []string
	UserNS uint32
}

// Start makes a box, whose command waits for Run. It needs root.
func Start(cfg Config) (*Box, error) {
	b, err := start(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a container: %w", err)
	}
	if err := b.expect("covered"); err != nil {
		return nil, fmt.Errorf("make a container: %w", errors.Join(err, b.Kill()))
	}
	return b, nil
}

func start(cfg Config) (_ *Box, err error) {
	cgroup, err := os.Open(cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	var ends [4]*os.File // to it and from it
	defer func() {
		for i, f := range ends {
			if f != nil && (err != nil || i == 0 || i == 3) {
				f.Close()
			}
		}
	}()
	if ends[0], ends[1], err = os.Pipe(); err != nil {
		return nil, err
	}
	if ends[2], ends[3], err = os.Pipe(); err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{InitName}
	cmd.ExtraFiles = []*os.File{ends[0], ends[3]}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = cfg.Stdin, cfg.Stdout, cfg.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()),
	}
	if err := inSilentNetwork(cmd.Start); err != nil {
		return nil, err
	}
	b := &Box{cmd: cmd, pipe: ends[1], said: ends[2], lines: bufio.NewReader(ends[2])}
	if err := json.NewEncoder(b.pipe).Encode(order{cfg.Argv, cfg.Hidden, cfg.UserNS}); err != nil {
		return nil, errors.Join(err, b.Kill())
	}
	return b, nil
}

// inSilentNetwork runs f in a new network namespace in which the kernel tells no
// events.
func inSilentNetwork(f func() error) (err error) {
	owner := exec.Command("/proc/self/exe")
	owner.Args = []string{InitName, "network"}
	owner.Stderr = os.Stderr
	owner.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	in, err := owner.StdinPipe()
	if err != nil {
		return err
	}
	out, err := owner.StdoutPipe()
	if err != nil {
		return err
	}
	if err := owner.Start(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	defer func() {
		in.Close()
		err = errors.Join(err, owner.Wait())
	}()
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", owner.Process.Pid))
	if err != nil {
		return err
	}
	defer netns.Close()
	return thread.Run(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// expect reads a line that the first process says.
func (b *Box) expect(want string) error {
	line, err := b.lines.ReadString('\n')
	if line = strings.TrimSpace(line); line == want {
		return nil
	}
	if line == "" {
		return fmt.Errorf("its first process ends: %w", err)
	}
	return errors.New(line)
}

// PID is the first process of the box.
func (b *Box) PID() int { return b.cmd.Process.Pid }

// Run lets the command run.
func (b *Box) Run() error {
	if _, err := io.WriteString(b.pipe, "run\n"); err != nil {
		return fmt.Errorf("run a command in a container: %w", err)
	}
	if err := b.expect("runs"); err != nil {
		return fmt.Errorf("run a command in a container: %w", err)
	}
	return nil
}

// Signal sends the command a signal, one of SIGHUP, SIGINT and SIGTERM.
func (b *Box) Signal(s os.Signal) error { return b.cmd.Process.Signal(s) }

// Wait returns the exit status of the command, 128 and the signal if one ended
// it, when nothing of the box runs any more.
func (b *Box) Wait() (int, error) {
	err := b.cmd.Wait()
	b.pipe.Close()
	b.said.Close()
	if err != nil && b.cmd.ProcessState == nil {
		return 0, fmt.Errorf("wait for a container: %w", err)
	}
	status := b.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// Kill ends everything in the box, and waits for it.
func (b *Box) Kill() error {
	_ = b.cmd.Process.Kill() // it may have ended
	_, err := b.Wait()
	return err
}
