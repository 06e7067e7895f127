//go:build linux

package container

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A SocketError tells why a socket was not taken.
type SocketError struct {
	// Errno is what to give back to the caller: EINVAL if the descriptor is
	// not a socket that can be attached, EPERM if it may not be taken.
	Errno syscall.Errno
	// Subject names the socket, "descriptor 3 of thread 4711".
	Subject string
	// Reason is what is wrong, and what to do.
	Reason string
}

func (e *SocketError) Error() string { return e.Subject + ": " + e.Reason }

// Unwrap returns the Errno.
func (e *SocketError) Unwrap() error { return e.Errno }

// named gives a SocketError the subject its reader knows.
func named(err error, subject string) error {
	var e *SocketError
	if errors.As(err, &e) {
		return &SocketError{Errno: e.Errno, Subject: subject, Reason: e.Reason}
	}
	return err
}

const yamaScope = "/proc/sys/kernel/yama/ptrace_scope"

// denied is the reason for an EPERM of pidfd_getfd or kcmp, which both ask for
// the right to trace the caller.
func denied() string {
	scope, _ := os.ReadFile(yamaScope) // absent without Yama
	return deniedReason(strings.TrimSpace(string(scope)), canTrace())
}

func deniedReason(scope string, capable bool) string {
	switch {
	case scope == "3":
		return "kernel.yama.ptrace_scope=3 forbids taking descriptors, even to root: " +
			"set it to 2 or less in /etc/sysctl.d and reboot"
	case !capable:
		return "taking a descriptor needs CAP_SYS_PTRACE: run the daemon as root, or grant it that capability"
	default:
		return "the kernel forbids taking the descriptor: let a security module or seccomp filter " +
			"permit pidfd_getfd and kcmp to the daemon, and run it in the host's user namespace"
	}
}

// canTrace tells whether CAP_SYS_PTRACE is effective.
func canTrace() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0
}
