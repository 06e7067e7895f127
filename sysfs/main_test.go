//go:build linux

package sysfs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/worker"
)

// helperEnv makes the test binary one of the programs that use a tree.
const helperEnv = "USBNS_SYSFS_HELPER"

func TestMain(m *testing.M) {
	if worker.Called() {
		os.Exit(worker.Main())
	}
	if helper := os.Getenv(helperEnv); helper != "" {
		name, arg, _ := strings.Cut(helper, " ")
		if err := map[string]func(string) error{"attach": helpAttach, "write": helpWrite, "serve": helpServe, "bind": helpBind, "unmount": helpUnmount}[name](arg); err != nil {
			fmt.Println(err)
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

// helper makes the test binary a helper.
func helper(t testing.TB, what string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

// helpAttach dials the second word of arg and attaches it with the file attach
// that is the first.
func helpAttach(arg string) error {
	var path, address string
	if _, err := fmt.Sscan(arg, &path, &address); err != nil {
		return err
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	return attach(path, 0, conn.(*net.TCPConn))
}

// helpWrite writes arg to its standard output.
func helpWrite(arg string) error {
	_, err := syscall.Write(1, []byte(arg))
	return err
}

// helpServe mounts a tree on arg, says so, and waits.
func helpServe(arg string) error {
	f, c, err := mountOne(arg)
	if err != nil {
		return err
	}
	fmt.Println(f.NamelessDir(c))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// helpBind mounts a tree on arg, and binds what it serves until it is killed.
func helpBind(arg string) error {
	f, c, err := mountOne(arg)
	for err == nil {
		err = container.BindController(container.Binding{Dir: f.NamelessDir(c), Server: f.Server()})
		fmt.Println("bound")
	}
	return err
}

// helpUnmount binds the file arg over itself, and unmounts it by force.
func helpUnmount(arg string) error {
	if err := unix.Mount(arg, arg, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return unix.Unmount(arg, unix.MNT_FORCE)
}

// mountOne mounts the tree of one controller.
func mountOne(dir string) (*Tree, *controller.Controller, error) {
	var table controller.Table
	if _, err := table.Create(controller.Config{Driver: &controller.User{}, Policy: policy.Open()}, 1); err != nil {
		return nil, nil, err
	}
	f, err := Mount(dir, Options{Table: &table, Identify: identify, Log: slog.New(slog.DiscardHandler)})
	return f, table.Controller(0), err
}

func identify(tid int) (Caller, error) {
	c, err := container.IdentifyCaller(tid)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// attach writes the number of conn to the file attach.
func attach(path string, port int, conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	if err := raw.Control(func(fd uintptr) {
		werr = write(path, string(vhci.AppendAttach(nil, vhci.AttachRequest{
			Port: port, SockFD: int(fd), DevID: testDevID, Speed: usb.SpeedHigh,
		})))
	}); err != nil {
		return err
	}
	return werr
}

// write writes a file with one system call.
func write(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(text))
	return err
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// needFUSE skips the test where nothing can be mounted.
func needFUSE(t testing.TB) {
	t.Helper()
	var reason string
	if os.Geteuid() != 0 {
		reason = "needs root to mount"
	} else if fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		reason = fmt.Sprintf("needs /dev/fuse: %v", err)
	} else {
		unix.Close(fd)
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// start mounts the tree of a table with count controllers until the test ends,
// and then looks for what it left.
func start(t testing.TB, count int, change func(*Options)) (*Tree, *controller.Table) {
	t.Helper()
	needFUSE(t)
	noLeaks(t)
	table := new(controller.Table)
	if count > 0 {
		if _, err := table.Create(controller.Config{Policy: policy.Open(), Driver: &controller.User{Timeout: patience}, UID: 7, GID: 8, HubPorts: 2}, count); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Table: table, Identify: identify, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	return mountUntilEnd(t, o), table
}

// mountUntilEnd mounts a tree, and ends it and its table with the test.
func mountUntilEnd(t testing.TB, o Options) *Tree {
	t.Helper()
	dir := filepath.Join(must.TempDir(t), "sys")
	f, err := Mount(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		o.Table.Close()
		if strings.Contains(read(t, "/proc/self/mountinfo"), dir) {
			t.Errorf("%s is still mounted", dir)
		}
	})
	return f
}

// noLeaks fails the test if goroutines of this module or descriptors are left.
func noLeaks(t testing.TB) {
	t.Helper()
	before := must.Descriptors(t)
	t.Cleanup(func() {
		if after := must.Descriptors(t); len(after) > len(before) {
			t.Errorf("descriptors before: %v, after: %v", before, after)
		}
	})
	must.NotLeak(t) // first, for they hold descriptors
}

const testDevID = 0x10002

// patience is for slow machines.
const patience = 30 * time.Second

// serve is an exporter of a scanner on peer until the test ends.
func serve(t testing.TB, peer net.Conn) {
	t.Helper()
	scanner, err := emulate.NewScanner(emulate.Options{Speed: usb.SpeedHigh})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { scanner.Close() })
	usbiptest.Serve(t, peer, testDevID, scanner)
}

func wantErrno(t testing.TB, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
