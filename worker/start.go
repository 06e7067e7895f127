//go:build linux

package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout is for a worker to start and to give up its rights. It is long
// because nothing is wrong with a machine that is slow.
const startTimeout = 30 * time.Second

// ErrNone says that no worker listens on a socket.
var ErrNone = errors.New("no worker is there")

// maxOutput is how much is kept of what a worker writes: the reason of a panic,
// and where it was, come first.
const maxOutput = 4 << 10

// Start starts a worker that listens on the socket path, which is replaced. The
// directory must be the caller's alone. If the worker fails before the Client is
// closed, failed is called with its exit and the beginning of what it wrote, which
// may be anything.
func Start(ctx context.Context, path string, failed func(exit error, output string)) (*Client, error) {
	c, err := start(ctx, path, failed)
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	return c, nil
}

func start(ctx context.Context, path string, failed func(error, string)) (*Client, error) {
	listener, err := bind(path)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "daemon")
	defer theirs.Close()
	w, err := newWire(os.NewFile(uintptr(pair[0]), "worker"))
	if err != nil {
		return nil, err
	}
	// What this process has of whoever started it is not for a worker.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keep descriptors: %w", err)
	}
	output, stderr, err := os.Pipe()
	if err != nil {
		w.c.Close()
		return nil, err
	}
	defer stderr.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{Name}, Dir: "/",
		// The runtime would keep files of the cgroup open. A second CPU is more
		// often woken in vain than it is of use, see "Speed".
		Env:        []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0", "GOMAXPROCS=1"},
		Stderr:     stderr,
		ExtraFiles: []*os.File{listenFD - 3: listener, daemonFD - 3: theirs},
		// Not in a session that a terminal's hang-up or Ctrl-C reaches.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Cloneflags: namespaces()},
	}
	if err := cmd.Start(); err != nil {
		w.c.Close()
		output.Close()
		return nil, err
	}
	c := newClient(w, cmd.Process)
	go func() {
		exit := cmd.Wait()
		_ = output.SetReadDeadline(time.Now().Add(answerTimeout)) // others can have got the pipe from it
		text, _ := io.ReadAll(io.LimitReader(output, maxOutput))
		output.Close()
		if exit != nil && !c.left() {
			failed(exit, string(text))
		}
	}()
	if err := c.greet(ctx, startTimeout); err != nil {
		return nil, err
	}
	return c, nil
}

// bind makes the socket that a worker is to listen on.
func bind(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove an old socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		f.Close()
		return nil, fmt.Errorf("protect a socket: %w", err)
	}
	return f, nil
}

// Open connects to the worker that listens on path. The error wraps [ErrNone] if
// there is none, and then the socket is removed.
func Open(ctx context.Context, path string) (*Client, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(path)
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	} else if err != nil {
		return nil, fmt.Errorf("connect to a worker: %w", err)
	}
	// The process is found before it is asked something: that it answers then
	// shows that it is the one.
	proc, err := peer(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to a worker: %w", err)
	}
	c := newClient(&wire{c: conn}, proc)
	if err := c.greet(ctx, answerTimeout); err != nil {
		return nil, fmt.Errorf("connect to a worker: %w", err)
	}
	return c, nil
}

// peer returns the process that listens on the other end.
func peer(conn *net.UnixConn) (*os.Process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return nil, err
	}
	return os.FindProcess(int(cred.Pid))
}
