//go:build linux

package container

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/thread"
)

func identify(t *testing.T, tid int) *Caller {
	t.Helper()
	c, err := IdentifyCaller(tid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// wantRefused checks the number to give back and the text.
func wantRefused(t *testing.T, err error, errno syscall.Errno, text string) {
	t.Helper()
	var e *SocketError
	if !errors.As(err, &e) || !errors.Is(err, errno) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want a SocketError of %q with %q", err, errno, text)
	}
}

func TestTakeSocketOfThread(t *testing.T) {
	checkLeaks(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	c := identify(t, tid)
	if tid == os.Getpid() || c.PID() != os.Getpid() {
		t.Fatalf("thread %d of process %d identified as %d", tid, os.Getpid(), c.PID())
	}
	a, b := pair(t, unix.SOCK_STREAM)
	conn, err := c.TakeSocket(tid, a)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(b, make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("peer reads %d bytes, %v", n, err)
	}
}

func TestTakeSocketRefusesDescriptor(t *testing.T) {
	c := identify(t, os.Getpid())
	for name, bad := range badDescriptors(t) {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			_, err := c.TakeSocket(os.Getpid(), bad.fd)
			wantRefused(t, err, unix.EINVAL, bad.text)
			wantRefused(t, err, unix.EINVAL, fmt.Sprintf("descriptor %d of thread %d: ", bad.fd, os.Getpid()))
		})
	}
	t.Run("more than 32 bits", func(t *testing.T) {
		a, _ := pair(t, unix.SOCK_STREAM)
		_, err := c.TakeSocket(os.Getpid(), math.MaxUint32+1+a)
		wantRefused(t, err, unix.EINVAL, "not an open descriptor")
	})
}

func TestOutsidePIDNamespace(t *testing.T) {
	_, err := IdentifyCaller(0)
	wantRefused(t, err, unix.EPERM, "outside our pid namespace")
	_, err = identify(t, os.Getpid()).TakeSocket(0, 1)
	wantRefused(t, err, unix.EPERM, "outside our pid namespace")
}

// dialer starts a helper that has a connection to us.
func dialer(t *testing.T, attr *syscall.SysProcAttr) (pid, own, fd int, peer net.Conn, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pid, line, stop := helper(t, "dial "+l.Addr().String(), attr)
	if _, err := fmt.Sscan(line, &own, &fd); err != nil {
		t.Fatalf("helper says %q", line)
	}
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return pid, own, fd, peer, stop
}

func TestTakeSocketRefusesForeignWriter(t *testing.T) {
	checkLeaks(t)
	pid, _, fd, _, stop := dialer(t, nil)
	_, err := identify(t, os.Getpid()).TakeSocket(pid, fd)
	wantRefused(t, err, unix.EPERM, "is written by another")

	dead := identify(t, pid)
	stop()
	_, err = dead.TakeSocket(pid, fd)
	wantRefused(t, err, unix.EPERM, "gone")
}

// A process that has the id of one that ended is not taken for it.
func TestTakeSocketRefusesReusedID(t *testing.T) {
	checkLeaks(t)
	pid, _, _, _, stop := dialer(t, nil)
	c := identify(t, pid)
	stop()
	c.tgid = os.Getpid()
	a, _ := pair(t, unix.SOCK_STREAM)
	_, err := c.TakeSocket(os.Getpid(), a)
	wantRefused(t, err, unix.EPERM, "is written by another")
}

func TestTakeSocketFromNamespaces(t *testing.T) {
	checkLeaks(t)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	groups := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	pid, own, fd, peer, stop := dialer(t, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		UidMappings: ids, GidMappings: groups,
	})
	if own != 1 {
		t.Errorf("process id inside is %d, want 1", own)
	}
	conn, err := identify(t, pid).TakeSocket(pid, fd)
	if err != nil {
		t.Fatal(err)
	}
	stop() // the connection outlives its caller
	if _, err := conn.Write([]byte("taken")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got, err := io.ReadAll(peer); string(got) != "taken" || err != nil {
		t.Errorf("peer reads %q, %v", got, err)
	}
}

func TestTakeFromLeader(t *testing.T) {
	checkLeaks(t)
	a, _ := pair(t, unix.SOCK_STREAM)
	c := identify(t, os.Getpid())
	take := func(unshare bool) error {
		return thread.Run(func() error {
			if unshare {
				if err := unix.Unshare(unix.CLONE_FILES); err != nil {
					return err
				}
			}
			tid, answer := unix.Gettid(), make(chan error)
			go func() {
				dup, err := c.takeFromLeader(tid, a)
				if err == nil {
					unix.Close(dup)
				}
				answer <- err
			}()
			return <-answer
		})
	}
	if err := take(false); errors.Is(err, unix.ENOSYS) {
		t.Skip("kernel without kcmp")
	} else if err != nil {
		t.Errorf("thread that shares the table: %v", err)
	}
	if err := take(true); !errors.Is(err, errUnshared) {
		t.Errorf("thread with a table of its own: %v, want %v", err, errUnshared)
	}
	wantRefused(t, refusal(errUnshared, "descriptor"), unix.EPERM, "does not share")
}

func TestTakeSocketWithoutCapability(t *testing.T) {
	if !canTrace() {
		t.Skip("needs CAP_SYS_PTRACE to go without it")
	}
	checkLeaks(t)
	a, _ := pair(t, unix.SOCK_STREAM)
	_, line, _ := helper(t, fmt.Sprintf("unprivileged %d", a), nil)
	if !strings.Contains(line, "CAP_SYS_PTRACE") && !strings.Contains(line, "ptrace_scope=3") {
		t.Errorf("error does not say what is missing: %s", line)
	}
}

func TestDeniedReason(t *testing.T) {
	for _, test := range []struct {
		scope   string
		capable bool
		want    string
	}{
		{"3", true, "ptrace_scope=3"},
		{"3", false, "ptrace_scope=3"},
		{"1", false, "CAP_SYS_PTRACE"},
		{"", false, "CAP_SYS_PTRACE"},
		{"2", true, "security module"},
	} {
		if got := deniedReason(test.scope, test.capable); !strings.Contains(got, test.want) {
			t.Errorf("scope %q, capable %v: %q, want %q", test.scope, test.capable, got, test.want)
		}
	}
}

func TestClosedCaller(t *testing.T) {
	c := identify(t, os.Getpid())
	c.Close()
	a, _ := pair(t, unix.SOCK_STREAM)
	if _, err := c.TakeSocket(os.Getpid(), a); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want %v", err, os.ErrClosed)
	}
}
