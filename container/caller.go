//go:build linux

package container

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Caller is a process that has opened a file of ours. Its methods may be
// called at the same time.
type Caller struct {
	tgid  int
	pidfd *os.File // of the group leader; its number is not reused while this finds it
}

// IdentifyCaller fixes the process of the thread tid, as the header of a FUSE
// request has it. It must be called while that thread waits for the answer, so
// that its id cannot be reused. Thread 0, a caller outside our pid namespace, is
// refused with EPERM.
func IdentifyCaller(tid int) (*Caller, error) {
	subject := fmt.Sprintf("thread %d", tid)
	if tid <= 0 {
		return nil, outside(subject)
	}
	tgid, err := threadGroup(tid)
	if err != nil {
		return nil, fmt.Errorf("identify the process of %s: %w", subject, err)
	}
	fd, err := unix.PidfdOpen(tgid, 0)
	if err != nil {
		return nil, fmt.Errorf("identify the process of %s: pidfd_open %d: %w", subject, tgid, err)
	}
	c := &Caller{tgid: tgid, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if err := c.owns(tid, subject); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// PID returns the process id of the caller in our pid namespace.
func (c *Caller) PID() int { return c.tgid }

// Close lets go of the caller. Sockets taken from it stay open.
func (c *Caller) Close() error { return c.pidfd.Close() }

// TakeSocket returns a duplicate of the socket that the thread tid of the caller
// knows as fd. It must be called while that thread waits for the answer. The
// socket must pass [CheckSocket]; a refusal is a [SocketError]. The caller may
// close its descriptor afterwards. Until then it shares the connection with us,
// which has become non-blocking.
func (c *Caller) TakeSocket(tid, fd int) (net.Conn, error) {
	subject := fmt.Sprintf("descriptor %d of thread %d", fd, tid)
	if tid <= 0 {
		return nil, outside(subject)
	}
	if fd < 0 || fd > math.MaxInt32 { // the kernel would look at 32 bits only
		return nil, &SocketError{unix.EINVAL, subject, notOpen}
	}
	if err := c.owns(tid, subject); err != nil {
		return nil, err
	}
	dup, err := c.takeFromThread(tid, fd)
	if errors.Is(err, unix.EINVAL) {
		dup, err = c.takeFromLeader(tid, fd)
	}
	if err != nil {
		return nil, refusal(err, subject)
	}
	if err := c.owns(tid, subject); err != nil {
		unix.Close(dup)
		return nil, err
	}
	conn, err := adopt(dup)
	return conn, named(err, subject)
}

// takeFromThread fails with EINVAL where the kernel has no pidfd of a thread.
func (c *Caller) takeFromThread(tid, fd int) (int, error) {
	pidfd, err := unix.PidfdOpen(tid, unix.PIDFD_THREAD)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// takeFromLeader fails with errUnshared if the thread has a table of its own.
func (c *Caller) takeFromLeader(tid, fd int) (dup int, err error) {
	err = c.control(func(pidfd int) error {
		dup, err = unix.PidfdGetfd(pidfd, fd, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	// A table once unshared is never shared again, so sharing now proves that
	// it was shared then.
	if err := shareFiles(tid, c.tgid); err != nil {
		unix.Close(dup)
		return -1, err
	}
	return dup, nil
}

// owns tells whether tid is a thread of the caller.
func (c *Caller) owns(tid int, subject string) error {
	tgid, err := threadGroup(tid)
	if err != nil {
		return &SocketError{unix.EPERM, subject, "the thread is gone: " + err.Error()}
	}
	alive := c.control(func(pidfd int) error { return unix.PidfdSendSignal(pidfd, 0, nil, 0) })
	if errors.Is(alive, unix.EPERM) {
		alive = nil // it exists, and we may not signal it
	}
	if errors.Is(alive, os.ErrClosed) {
		return alive
	}
	if alive != nil || tgid != c.tgid {
		return &SocketError{unix.EPERM, subject, fmt.Sprintf(
			"the file was opened by process %d and is written by another: open it in the process that writes", c.tgid)}
	}
	return nil
}

// control runs f with the pidfd of the leader, which stays open meanwhile.
func (c *Caller) control(f func(pidfd int) error) error {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return fmt.Errorf("caller: %w", os.ErrClosed) // the only way to fail
	}
	return ferr
}

var errUnshared = errors.New("the thread does not share the descriptors of its process: " +
	"write from a thread that does, or run Linux 6.9 or newer")

// shareFiles proves that two tasks use one table of descriptors.
func shareFiles(tid, tgid int) error {
	if tid == tgid {
		return nil
	}
	const kcmpFiles = 2 // KCMP_FILES, include/uapi/linux/kcmp.h
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(tid), uintptr(tgid), kcmpFiles, 0, 0, 0)
	switch {
	case errno == unix.EPERM:
		return errno
	case errno != 0:
		return fmt.Errorf("kcmp cannot show that the thread shares the descriptors of its process: %w", errno)
	case order != 0:
		return errUnshared
	}
	return nil
}

// Dying tells whether a signal that ends a program waits for the thread tid of
// the caller: it is being killed, or was asked to end. It must be called while
// that thread waits for the answer.
func (c *Caller) Dying(tid int) bool {
	const ending = 1<<(unix.SIGHUP-1) | 1<<(unix.SIGINT-1) | 1<<(unix.SIGQUIT-1) | 1<<(unix.SIGKILL-1) | 1<<(unix.SIGTERM-1)
	var sets [3]uint64
	for i, name := range [...]string{"SigPnd", "ShdPnd", "SigBlk"} {
		value, err := threadStatus(tid, name)
		if err == nil {
			sets[i], err = strconv.ParseUint(value, 16, 64)
		}
		if err != nil {
			return true // it is gone
		}
	}
	return (sets[0]|sets[1])&^sets[2]&ending != 0
}

// threadGroup returns the process id of a thread.
func threadGroup(tid int) (int, error) {
	value, err := threadStatus(tid, "Tgid")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(value)
}

// threadStatus returns a field of a thread's status.
func threadStatus(tid int, field string) (string, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("/proc/%d/status has no %s", tid, field)
}

func outside(subject string) error {
	return &SocketError{
		unix.EPERM, subject,
		"the caller is outside our pid namespace: run the daemon in the host's",
	}
}

// refusal makes a SocketError of why a descriptor was not duplicated.
func refusal(err error, subject string) error {
	switch {
	case errors.Is(err, unix.EBADF):
		return &SocketError{unix.EINVAL, subject, notOpen}
	case err == unix.EPERM:
		return &SocketError{unix.EPERM, subject, denied()}
	case errors.Is(err, unix.EMFILE):
		return &SocketError{unix.EMFILE, subject, "the daemon has no descriptor left: raise its limit of open files"}
	default:
		return &SocketError{unix.EPERM, subject, "cannot be taken: " + err.Error()}
	}
}
