//go:build linux

package container

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
)

// helperEnv makes the test binary one of the programs that call.
const helperEnv = "USBNS_CONTAINER_HELPER"

// Tests run in threads other than the group's leader.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if helper := os.Getenv(helperEnv); helper != "" {
		name, arg, _ := strings.Cut(helper, " ")
		if err := map[string]func(string) error{"dial": helpDial, "unprivileged": helpUnprivileged}[name](arg); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Let the runtime open the descriptors that it keeps.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	os.Exit(m.Run())
}

// helpDial connects, says its process id and the descriptor, and waits.
func helpDial(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { fmt.Println(os.Getpid(), fd) }); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// helpUnprivileged tries to take a descriptor of its parent without the right to.
func helpUnprivileged(fd string) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&head, &none[0]); err != nil {
		return err
	}
	n, err := strconv.Atoi(fd)
	if err != nil {
		return err
	}
	c, err := IdentifyCaller(os.Getppid())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.TakeSocket(os.Getppid(), n)
	return err
}

// helper starts the test binary as a helper, and returns its first line.
func helper(t *testing.T, what string, attr *syscall.SysProcAttr) (pid int, line string, stop func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+what)
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		in.Close()
		out.Close()
		if attr != nil && os.Geteuid() != 0 {
			t.Skipf("no namespaces without privilege: %v", err)
		}
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			in.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("helper: %v", err)
	}
	return cmd.Process.Pid, strings.TrimSpace(line), stop
}

// checkLeaks fails the test if it leaves descriptors open.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := must.Descriptors(t)
	t.Cleanup(func() {
		if after := must.Descriptors(t); len(after) != len(before) {
			t.Errorf("descriptors before: %v, after: %v", before, after)
		}
	})
}

// pair returns two ends of a Unix socket, closed with the test.
func pair(t *testing.T, kind int) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// conns returns two ends of a Unix socket as connections.
func conns(t *testing.T, kind int) (a, b *net.UnixConn) {
	t.Helper()
	var ends [2]*net.UnixConn
	x, y := pair(t, kind)
	for i, fd := range []int{x, y} {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(dup), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}
