//go:build linux

package sysfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/vhci"
)

// first waits for the first bytes of the importer, and returns the connection as
// if nobody had.
func first(t testing.TB, peer net.Conn) net.Conn {
	t.Helper()
	head := make([]byte, 1)
	if _, err := io.ReadFull(peer, head); err != nil {
		t.Fatal(err)
	}
	return &replay{Conn: peer, r: io.MultiReader(bytes.NewReader(head), peer)}
}

type replay struct {
	net.Conn
	r io.Reader
}

func (r *replay) Read(b []byte) (int, error) { return r.r.Read(b) }

func TestAttach(t *testing.T) {
	f, table := start(t, 2, nil)
	c := table.Controller(1)
	here, peer := must.Connect(t)
	serve(t, peer)
	if err := attach(f.NamelessDir(c)+"/attach", 1, here); err != nil {
		t.Fatal(err)
	}
	here.Close()
	p := c.Ports()[1]
	host, port, _ := net.SplitHostPort(peer.LocalAddr().String())
	if p.ProductName == "" || p.From.Host != host || p.From.Port != port || p.DevID != testDevID {
		t.Errorf("port %+v", p)
	}
	again, _ := must.Connect(t)
	wantErrno(t, "attach to a port in use", attach(f.Dir(c)+"/attach", 1, again), unix.EBUSY)
	dev := c.Device(1)
	if err := write(f.Dir(c)+"/detach", "1\n"); err != nil {
		t.Error(err)
	}
	<-dev.Gone()
}

// Whoever attaches names a Unix socket as he likes, and whoever lists ports has
// what it says on his terminal.
func TestAttachShowsNoNameOfAUnixSocket(t *testing.T) {
	f, table := start(t, 1, nil)
	c := table.Controller(0)
	l, err := net.Listen("unix", filepath.Join(must.TempDir(t), "\x1bc:1"))
	must.OK(t, err)
	defer l.Close()
	here, err := net.Dial("unix", l.Addr().String())
	must.OK(t, err)
	defer here.Close()
	peer, err := l.Accept()
	must.OK(t, err)
	defer peer.Close()
	serve(t, peer)
	must.OK(t, attach(f.Dir(c)+"/attach", 0, here.(*net.UnixConn)))
	if p := c.Ports()[0]; p.ProductName == "" || p.From != (vhci.Record{}) {
		t.Errorf("port %+v", p)
	}
}

// A refused attach has a number for the writer and a line of log.
func TestAttachRefusals(t *testing.T) {
	var mu sync.Mutex
	var lines bytes.Buffer
	f, table := start(t, 1, func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return lines.Write(b)
		}), nil))
	})
	path := f.Dir(table.Controller(0)) + "/attach"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listening, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	socket := func(kind int) int {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	for name, test := range map[string]struct{ text, reason string }{
		"nothing":      {"\n", "no number"},
		"three words":  {"0 3 65538", "speed"},
		"minus":        {"-1 3 65538 3", "no number"},
		"no such port": {"4 3 65538 3", "no port 4"},
		"no speed":     {"0 3 65538 0", "no speed"},
		"not a socket": {fmt.Sprintf("0 %d 65538 3", devNull(t)), "not a socket"},
		"closed":       {"0 99999 65538 3", "not an open descriptor"},
		"udp":          {fmt.Sprintf("0 %d 65538 3", socket(unix.SOCK_DGRAM)), "not a stream"},
		"unconnected":  {fmt.Sprintf("0 %d 65538 3", socket(unix.SOCK_STREAM)), "not connected"},
		"listening":    {fmt.Sprintf("0 %d 65538 3", listening.Fd()), "listening"},
	} {
		t.Run(name, func(t *testing.T) {
			mu.Lock()
			lines.Reset()
			mu.Unlock()
			wantErrno(t, "attach", write(path, test.text), unix.EINVAL)
			mu.Lock()
			defer mu.Unlock()
			if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, test.reason) || !strings.Contains(got, "vhci_hcd.0") {
				t.Errorf("the log says %q, want %q", got, test.reason)
			}
		})
	}
	for _, text := range []string{"\n", "x", "4", "1 ", "0"} {
		wantErrno(t, fmt.Sprintf("detach %q", text), write(f.Dir(table.Controller(0))+"/detach", text), unix.EINVAL)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func devNull(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// A write is one request, whatever the position of the file.
func TestWritesInPieces(t *testing.T) {
	f, table := start(t, 1, nil)
	c := table.Controller(0)
	path := f.Dir(c) + "/attach"
	for _, flags := range []int{0, unix.O_TRUNC, unix.O_APPEND} {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		here, peer := must.Connect(t)
		serve(t, peer)
		raw, err := here.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(s uintptr) {
			_, err = unix.Write(fd, []byte(fmt.Sprintf("0 %d", s)))
			wantErrno(t, "first piece", err, unix.EINVAL)
			_, err = unix.Write(fd, []byte(" 65538 3"))
			wantErrno(t, "second piece", err, unix.EINVAL)
			if _, err := unix.Write(fd, []byte(fmt.Sprintf("0 %d 65538 3\n", s))); err != nil {
				t.Errorf("whole with flags %x: %v", flags, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		dev := c.Device(0)
		if err := c.Detach(0); err != nil {
			t.Fatal(err)
		}
		<-dev.Gone()
		waitFree(t, c)
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte("0 3 65538 3"), 1); err == nil {
		t.Error("a write at an offset is taken")
	}
}

// waitFree waits for the moment between the end of a device and that of its port.
func waitFree(t *testing.T, c *controller.Controller) {
	t.Helper()
	for !c.Ports()[0].Free() {
		if t.Context().Err() != nil {
			t.Fatal("the port does not become free")
		}
	}
}

// The standard output of a program that somebody else opened is no way to its
// descriptors.
func TestWriterMustBeOpener(t *testing.T) {
	f, table := start(t, 1, nil)
	file, err := os.OpenFile(f.Dir(table.Controller(0))+"/attach", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := helper(t, "write 0 0 65538 3")
	cmd.Stdout = file
	if err := cmd.Run(); err == nil {
		t.Error("a passed on file is written to")
	}
}

func TestAllowed(t *testing.T) {
	f, table := start(t, 1, func(o *Options) {
		o.Allowed = func(c *controller.Controller, pid int) error {
			return fmt.Errorf("%v is not for process %d", c, pid)
		}
	})
	here, _ := must.Connect(t)
	wantErrno(t, "attach", attach(f.Dir(table.Controller(0))+"/attach", 0, here), unix.EPERM)
}

// One attach at a time of a controller, and those that hang hold up nobody else.
func TestHangingAttaches(t *testing.T) {
	const count = 100
	f, table := start(t, count+1, nil)
	var attempts sync.WaitGroup
	var peers []net.Conn
	for i := range count {
		here, peer := must.Connect(t)
		attempts.Go(func() {
			if err := attach(f.Dir(table.Controller(i))+"/attach", 0, here); err == nil {
				t.Errorf("attach %d succeeds", i)
			}
		})
		peers = append(peers, first(t, peer))
	}
	// The last has hung for the shortest time: they end by themselves as well.
	last := f.Dir(table.Controller(count - 1))
	second, _ := must.Connect(t)
	wantErrno(t, "a second attach", attach(last+"/attach", 1, second), unix.EAGAIN)
	if err := write(last+"/detach", "0"); err != nil {
		t.Error(err)
	}
	for _, c := range table.All() {
		read(t, f.NamelessDir(c)+"/status")
	}
	here, peer := must.Connect(t)
	serve(t, peer)
	if err := attach(f.Dir(table.Controller(count))+"/attach", 0, here); err != nil {
		t.Errorf("attach beside those that hang: %v", err)
	}
	for _, peer := range peers {
		peer.Close()
	}
	attempts.Wait()
}

// A signal ends the attempt of a program that it ends, and of no other.
func TestSignals(t *testing.T) {
	looked := make(chan bool, 100)
	f, table := start(t, 1, func(o *Options) {
		o.Identify = func(tid int) (Caller, error) {
			c, err := identify(tid)
			return watched{c, looked}, err
		}
	})
	run := func(index int) (*exec.Cmd, net.Conn) {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cmd := helper(t, fmt.Sprintf("attach %s %s", f.Dir(table.Controller(index))+"/attach", l.Addr()))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { peer.Close() })
		return cmd, peer
	}

	cmd, peer := run(0)
	peer = first(t, peer)
	for dying := true; dying; dying = <-looked {
		// The writing thread may not be the one that gets it.
		if err := signalAll(cmd.Process.Pid, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, peer)
	if err := cmd.Wait(); err != nil {
		t.Errorf("an attach that got SIGURG: %v", err)
	}
	if table.Controller(0).Device(0) == nil {
		t.Error("there is no device")
	}

	hung := hang(t, table)
	cmd, _ = run(hung.c.Index())
	<-hung.started
	if err := cmd.Process.Signal(os.Kill); err != nil {
		t.Fatal(err)
	}
	if cause := <-hung.ended; !errors.Is(cause, context.Canceled) {
		t.Errorf("the attempt of a killed program ends with %v", cause)
	}
	err := cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("a killed attach: %v", err)
	}
}

// A hanging is a controller whose driver does nothing until it is told to end.
type hanging struct {
	c       *controller.Controller
	started chan struct{}
	ended   chan error // why
}

func hang(t *testing.T, table *controller.Table) hanging {
	t.Helper()
	h := hanging{started: make(chan struct{}), ended: make(chan error, 1)}
	made, err := table.Create(controller.Config{Driver: h, Policy: policy.Open()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	h.c = made[0]
	return h
}

func (h hanging) Attach(ctx context.Context, _ controller.Plug) (controller.Attachment, error) {
	close(h.started)
	<-ctx.Done()
	h.ended <- context.Cause(ctx)
	return nil, ctx.Err()
}

func (h hanging) Restore(context.Context, controller.Plug, []byte) (controller.Attachment, error) {
	return nil, controller.ErrNotRestored
}

type watched struct {
	Caller
	looked chan<- bool
}

func (w watched) Dying(tid int) bool {
	dying := w.Caller.Dying(tid)
	select {
	case w.looked <- dying:
	default:
	}
	return dying
}

// signalAll sends a signal to each thread of a process.
func signalAll(pid int, sig syscall.Signal) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		var tid int
		if _, err := fmt.Sscan(thread.Name(), &tid); err != nil {
			return err
		}
		if err := unix.Tgkill(pid, tid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// Close ends what hangs.
func TestCloseEndsAttempts(t *testing.T) {
	f, table := start(t, 0, nil)
	hung := hang(t, table)
	here, _ := must.Connect(t)
	ended := make(chan error, 1)
	go func() { ended <- attach(f.Dir(hung.c)+"/attach", 0, here) }()
	<-hung.started
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("attach succeeds")
	}
	if cause := <-hung.ended; !errors.Is(cause, context.Canceled) {
		t.Errorf("the attempt ends with %v", cause)
	}
}

// A container with a user namespace of its own cannot end the tree for all. Who
// can does not go unnoticed.
func TestUnmountedByForce(t *testing.T) {
	f, table := start(t, 1, nil)
	path := f.Dir(table.Controller(0)) + "/status"
	unmount := func(flags uintptr) string {
		cmd := helper(t, "unmount "+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags | unix.CLONE_NEWNS}
		if flags != 0 {
			ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
			cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		}
		out, _ := cmd.Output()
		return string(out)
	}
	if out := unmount(unix.CLONE_NEWUSER); !strings.Contains(out, unix.EPERM.Error()) {
		t.Errorf("unmount by force in a user namespace: %s", out)
	}
	read(t, path)
	if out := unmount(0); out != "" {
		t.Fatal(out)
	}
	<-f.Done()
	_, err := os.ReadFile(path)
	wantErrno(t, "read of a tree that ended", err, unix.ENOTCONN)
}

// A tree takes the place of that of a killed daemon, whose binds are dead.
func TestPlaceOfADeadDaemon(t *testing.T) {
	needFUSE(t)
	noLeaks(t)
	dir := must.TempDir(t)
	bound := filepath.Join(dir, "bound")
	if err := os.WriteFile(bound, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := helper(t, "serve "+dir+"/sys")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var nameless string
	if _, err := fmt.Fscan(out, &nameless); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(nameless+"/status", bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(bound, unix.MNT_DETACH)
	read(t, bound)
	cmd.Process.Kill()
	cmd.Wait()
	_, err = os.ReadFile(bound)
	wantErrno(t, "bound file of a dead daemon", err, unix.ENOTCONN)

	f, err := Mount(dir+"/sys", Options{Table: new(controller.Table), Identify: identify, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir+"/sys"); len(got) != 2 {
		t.Errorf("the new tree has %v", got)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(read(t, "/proc/self/mountinfo"), dir+"/sys "); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}
