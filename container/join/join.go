//go:build linux

package join

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/thread"
)

// A Config says where to run, and what.
type Config struct {
	// PID is a process of the container.
	PID int
	// Cgroup is the directory of its cgroup.
	Cgroup string
	// Capabilities bounds what the program may have, a bit for each.
	Capabilities uint64
	// Argv is how the program is called.
	Argv []string
	// Stdin, Stdout and Stderr are the program's.
	Stdin, Stdout, Stderr *os.File
}

// Run returns when the program has ended, and an error if that was with another
// exit status than 0. It is killed when ctx ends. It needs root and Linux 5.8.
func Run(ctx context.Context, cfg Config) error {
	err := thread.Run(func() error { return cfg.run(ctx) })
	if err != nil {
		return fmt.Errorf("run a program in the container of process %d: %w", cfg.PID, err)
	}
	return nil
}

// shared are the namespaces that a thread can enter by itself.
const shared = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// run stays on its thread until the program has ended, which is killed when the
// thread ends.
func (cfg *Config) run(ctx context.Context) error {
	f, err := cfg.open()
	defer f.close()
	if err != nil {
		return err
	}
	pid, err := cfg.start(f)
	if err != nil {
		return err
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = process.Kill() })() // it may have ended
	state, err := process.Wait()
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !state.Success():
		return fmt.Errorf("%s: %v", cfg.Argv[0], state)
	}
	return nil
}

// files are what has to be open to get in.
type files struct {
	process *os.File // a pidfd
	root    *os.File
	cgroup  *os.File
	// Namespaces that only the child enters; users is nil if it is ours.
	cgroups, users *os.File
	program        *os.File
}

func (f *files) close() {
	for _, file := range []*os.File{f.process, f.root, f.cgroup, f.cgroups, f.users, f.program} {
		if file != nil {
			file.Close()
		}
	}
}

func (cfg *Config) open() (*files, error) {
	f := &files{}
	pidfd, err := unix.PidfdOpen(cfg.PID, 0)
	if err != nil {
		return f, os.NewSyscallError("pidfd_open", err)
	}
	f.process = os.NewFile(uintptr(pidfd), "pidfd")
	proc := fmt.Sprintf("/proc/%d/", cfg.PID)
	if f.root, err = os.OpenFile(proc+"root", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return f, err
	}
	if f.cgroup, err = os.OpenFile(cfg.Cgroup, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return f, err
	}
	if f.cgroups, err = os.Open(proc + "ns/cgroup"); err != nil {
		return f, err
	}
	theirs, err := os.Readlink(proc + "ns/user")
	if err != nil {
		return f, err
	}
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return f, err
	}
	if theirs != ours {
		if f.users, err = os.Open(proc + "ns/user"); err != nil {
			return f, err
		}
	}
	f.program, err = copySelf()
	return f, err
}

// start takes the thread into the container and forks there.
func (cfg *Config) start(f *files) (pid int, err error) {
	mayGroups, err := cfg.mayGroups()
	if err != nil {
		return 0, err
	}
	drop, err := cfg.dropped()
	if err != nil {
		return 0, err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns asks for it
		return 0, os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(int(f.process.Fd()), shared); err != nil {
		return 0, fmt.Errorf("enter its namespaces: %w", err)
	}
	if err := errors.Join(unix.Fchdir(int(f.root.Fd())), unix.Chroot(".")); err != nil {
		return 0, fmt.Errorf("enter its root: %w", err)
	}
	var s script
	s.add("enter its namespace of cgroups", unix.SYS_SETNS, f.cgroups.Fd(), unix.CLONE_NEWCGROUP)
	if f.users != nil {
		s.add("enter its user namespace", unix.SYS_SETNS, f.users.Fd(), unix.CLONE_NEWUSER)
	}
	if mayGroups {
		s.add("leave all groups", unix.SYS_SETGROUPS, 0, 0)
	}
	s.add("be in its group 0", unix.SYS_SETRESGID, 0, 0, 0)
	s.add("be its root", unix.SYS_SETRESUID, 0, 0, 0)
	for _, c := range drop {
		s.add("drop a capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
	}
	s.add("end with its parent", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	s.add("have a session of its own", unix.SYS_SETSID)
	for to, from := range []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr} {
		s.add("have its streams", unix.SYS_DUP3, from.Fd(), uintptr(to), 0)
	}
	if err := s.exec(f.program, cfg.Argv, []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}); err != nil {
		return 0, err
	}
	return s.fork(f.cgroup)
}

// mayGroups reports whether the container's user namespace lets its root change
// groups, user_namespaces(7).
func (cfg *Config) mayGroups() (bool, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/setgroups", cfg.PID))
	return strings.TrimSpace(string(text)) == "allow", err
}

// dropped are the capabilities that the kernel knows and the program may not have.
func (cfg *Config) dropped() (drop []uintptr, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return nil, err
	}
	last, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 6)
	if err != nil {
		return nil, fmt.Errorf("cap_last_cap: %w", err)
	}
	for c := range last + 1 {
		if cfg.Capabilities&(1<<c) == 0 {
			drop = append(drop, uintptr(c))
		}
	}
	return drop, nil
}

// copySelf returns this program as a file that nobody can change.
func copySelf() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("usbns", flags|unix.MFD_EXEC)
	if errors.Is(err, syscall.EINVAL) { // before Linux 6.3 all could be run
		fd, err = unix.MemfdCreate("usbns", flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	program := os.NewFile(uintptr(fd), "usbns")
	if _, err := program.ReadFrom(self); err != nil {
		program.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		program.Close()
		return nil, os.NewSyscallError("seal a memfd", err)
	}
	return program, nil
}
