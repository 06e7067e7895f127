//go:build linux

package worker

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
)

// CaptiveName is argv[0] of a process that is confined as a worker is, and tries
// to get out.
const CaptiveName = "captive"

const captiveFD = 3 // a socket, as a worker has them

// Captive is that process. It tells on its socket what it was not kept from.
func Captive() int {
	self := os.Getpid()
	parent := os.Getppid()
	if err := confine(); err != nil {
		_, _ = unix.Write(captiveFD, fmt.Appendln(nil, err))
		return 1
	}
	for _, try := range []struct {
		name    string
		number  uintptr
		a, b, c int
	}{
		{"own a socket for others", unix.SYS_FCNTL, captiveFD, unix.F_SETOWN, parent},
		{"own a socket for others, by a structure", unix.SYS_FCNTL, captiveFD, unix.F_SETOWN_EX, 0},
		{"choose a socket's signal", unix.SYS_FCNTL, captiveFD, unix.F_SETSIG, int(unix.SIGKILL)},
		{"signal others", unix.SYS_KILL, parent, 0, 0},
		{"signal a thread of others", unix.SYS_TGKILL, parent, parent, 0},
		{"signal itself as others do", unix.SYS_TKILL, self, 0, 0},
		{"trace others", unix.SYS_PTRACE, unix.PTRACE_SEIZE, parent, 0},
		{"hold others", unix.SYS_PIDFD_OPEN, parent, 0, 0},
		{"open files", unix.SYS_OPENAT, unix.AT_FDCWD, 0, 0},
		{"make sockets", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0},
		{"connect", unix.SYS_CONNECT, captiveFD, 0, 0},
		{"start programs", unix.SYS_EXECVE, 0, 0, 0},
		{"start processes", unix.SYS_CLONE, 0, 0, 0},
		{"control devices", unix.SYS_IOCTL, captiveFD, 0, 0},
		{"make namespaces", unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0},
		{"make code", unix.SYS_MMAP, 0, 4096, unix.PROT_EXEC},
	} {
		if _, _, errno := syscall.RawSyscall(try.number, uintptr(try.a), uintptr(try.b), uintptr(try.c)); errno != unix.EPERM {
			_, _ = unix.Write(captiveFD, fmt.Appendf(nil, "%s: %d\n", try.name, errno))
		}
	}
	return 0
}

// What a worker cannot do, tried by one that was taken over.
func TestCaptive(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.OK(t, err)
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "captive's")
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = CaptiveName
	cmd.ExtraFiles = []*os.File{captiveFD - 3: theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces()}
	err = cmd.Start()
	theirs.Close()
	must.OK(t, err)
	may, readErr := io.ReadAll(ours)
	must.OK(t, cmd.Wait())
	must.OK(t, readErr)
	if len(may) > 0 {
		t.Errorf("it was not kept from:\n%s", may)
	}
}
