//go:build guest

//vmexec:modules vhci-hcd fuse

package sysfs

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

const stockDir = "/sys/devices/platform/vhci_hcd.0"

// A room is a mount namespace with a /run of its own, and a /proc that knows only
// the processes of the room.
type room struct {
	t   *testing.T
	pid int
	ns  *os.File
}

// newRoom makes a room until the test ends. Its mounts are private unless said
// otherwise.
func newRoom(t *testing.T, propagation string) room {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "--propagation", propagation,
		"sh", "-c", "mount -t proc none /proc && mount -t tmpfs none /run && echo ready && exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("room says %q, %v", line, err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return room{t, cmd.Process.Pid, ns}
}

// run runs a program in the room.
func (r room) run(args ...string) (string, error) {
	r.t.Helper()
	args = append([]string{"--mount=" + fmt.Sprintf("/proc/%d/ns/mnt", r.pid)}, args...)
	out, err := exec.CommandContext(r.t.Context(), "nsenter", args...).CombinedOutput()
	return string(out), err
}

func (r room) mustRun(args ...string) string {
	r.t.Helper()
	out, err := r.run(args...)
	if err != nil {
		r.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

// mounts returns what is mounted in the directory of the stock tools.
func (r room) mounts() []string {
	r.t.Helper()
	var list []string
	for line := range strings.Lines(read(r.t, fmt.Sprintf("/proc/%d/mountinfo", r.pid))) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], stockDir) {
			list = append(list, f[4])
		}
	}
	return list
}

func (r room) bind(f *Tree, c *controller.Controller) {
	r.t.Helper()
	if err := container.BindController(container.Binding{Dir: f.NamelessDir(c), Server: f.Server(), Namespace: r.ns}); err != nil {
		r.t.Fatal(err)
	}
}

// export offers count scanners as 1-1 and so on, at the usual port.
func export(t *testing.T, count int) {
	t.Helper()
	var devices []usb.Device
	for range count {
		scanner, err := emulate.NewScanner(emulate.Options{})
		must.OK(t, err)
		devices = append(devices, scanner)
	}
	usbiptest.Export(t, usbiptest.StockAddr, devices...)
}

// rounds attaches and detaches over and over. A device is free some time after
// its detach, and so is the port.
const rounds = `cd ` + stockDir + `
port0() { { read -r _; read -r _ _ sta _; } < status; [ $sta = $1 ]; }
for i in $(seq $2); do
	until why=$(usbip attach -r 127.0.0.1 -b $1 2>&1); do
		case $why in *busy*) ;; *) echo "$why"; exit 1 ;; esac
	done
	port0 005 || { cat status; exit 1; }
	usbip detach -p 0 >/dev/null 2>&1 || { echo "detach fails"; exit 1; }
	until port0 004; do :; done
done`

// Debian's own usbip in two rooms. Devices of the driver User are in no kernel,
// so "usbip port" lists none, and the status has them at 005.
func TestGuestStockTool(t *testing.T) {
	f, table := start(t, 2, nil)
	export(t, 3)
	a, b := newRoom(t, "private"), newRoom(t, "private")
	a.bind(f, table.Controller(0))
	b.bind(f, table.Controller(1))
	if want := len(read(t, stockDir+"/nports")); want != len("240\n") {
		t.Error("the host's own files are covered")
	}
	a.mustRun("usbip", "attach", "-r", "127.0.0.1", "-b", "1-1")
	b.mustRun("usbip", "attach", "-r", "127.0.0.1", "-b", "1-2")
	b.mustRun("usbip", "attach", "-r", "127.0.0.1", "-b", "1-3")
	for _, test := range []struct {
		room room
		c    *controller.Controller
		used int
	}{{a, table.Controller(0), 1}, {b, table.Controller(1), 2}} {
		if out := test.room.mustRun("usbip", "port"); strings.Contains(out, "error") {
			t.Errorf("port prints\n%s", out)
		}
		out := test.room.mustRun("cat", stockDir+"/status")
		if strings.Count(out, " 005 ") != test.used || strings.Count(out, "\n") != 5 {
			t.Errorf("status of %v\n%s", test.c, out)
		}
		if test.c.Device(0) == nil {
			t.Errorf("%v has no device", test.c)
		}
	}
	// Port 1 is the other's.
	if out, _ := a.run("usbip", "detach", "-p", "1"); !strings.Contains(out, "already detached") {
		t.Errorf("detach of a free port prints\n%s", out)
	}
	if out, err := a.run("sh", "-c", "echo 1 > "+stockDir+"/detach"); err == nil {
		t.Errorf("detach of a free port succeeds: %s", out)
	}
	if out, err := a.run("usbip", "detach", "-p", "4"); err == nil || !strings.Contains(out, "Invalid port") {
		t.Errorf("detach of no port: %v\n%s", err, out)
	}
	if table.Controller(1).Device(1) == nil {
		t.Error("one room detached the other's device")
	}
	text := read(t, fmt.Sprintf("/proc/%d/mountinfo", a.pid))
	if strings.Contains(text, "vhci_hcd.1") || strings.Contains(text, filepath.Base(f.NamelessDir(table.Controller(1)))) {
		t.Errorf("mounts tell of the other room\n%s", text)
	}
	for range 2 {
		b.mustRun("usbip", "detach", "-p", "0")
		b.mustRun("usbip", "detach", "-p", "1")
	}
	a.mustRun("usbip", "detach", "-p", "0")
	a.mustRun("sh", "-c", "while grep -q ' 005 ' "+stockDir+"/status; do :; done")
	b.mustRun("sh", "-c", "while grep -q ' 005 ' "+stockDir+"/status; do :; done")

	before := [2]int{len(a.mounts()), len(b.mounts())}
	var both sync.WaitGroup
	for i, r := range []room{a, b} {
		both.Go(func() {
			if out, err := r.run("sh", "-c", rounds, "sh", fmt.Sprintf("1-%d", i+1), "50"); err != nil {
				t.Errorf("rounds: %v\n%s", err, out)
			}
		})
	}
	both.Wait()
	if after := [2]int{len(a.mounts()), len(b.mounts())}; after != before {
		t.Errorf("%v mounts before the rounds, %v after", before, after)
	}
}

// What depends on the kernel's FUSE, on the kernels that are supported.
func TestGuestFUSE(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"attach":   TestAttach,
		"pieces":   TestWritesInPieces,
		"opener":   TestWriterMustBeOpener,
		"hanging":  TestHangingAttaches,
		"signals":  TestSignals,
		"close":    TestCloseEndsAttempts,
		"dead":     TestPlaceOfADeadDaemon,
		"modes":    TestTreeLooksLikeSysfs,
		"deleted":  TestDeletedController,
		"reading":  TestReadInPieces,
		"too many": TestOpenFilesAreBounded,
	} {
		t.Run(name, test)
	}
}

// A binding takes the place of one whose daemon is gone, and none is left of one
// that fails.
func TestGuestBindAgain(t *testing.T) {
	f, table := start(t, 1, nil)
	c := table.Controller(0)
	r := newRoom(t, "private")
	status := func() (string, error) { return r.run("cat", stockDir+"/status") }

	partial := must.TempDir(t)
	for _, name := range []string{"nports", "status", "status.1", "detach"} {
		if err := os.WriteFile(filepath.Join(partial, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := container.BindController(container.Binding{Dir: partial, Server: -1, Namespace: r.ns})
	wantErrno(t, "bind without attach", err, unix.ENOENT)
	if _, err := r.run("mount", "-t", "tmpfs", "none", "/sys"); err != nil {
		t.Fatal(err)
	}
	err = container.BindController(container.Binding{Dir: f.NamelessDir(c), Server: f.Server(), Namespace: r.ns})
	wantErrno(t, "bind without sysfs", err, unix.ENOENT)
	r.mustRun("umount", "/sys")
	if got := r.mounts(); got != nil {
		t.Errorf("bindings that failed left %v", got)
	}

	r.bind(f, c)
	once := len(r.mounts())
	if once != 4+7 {
		t.Errorf("%d files are bound", once)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := status(); err == nil || !strings.Contains(out, "not connected") {
		t.Errorf("status of a dead daemon: %v\n%s", err, out)
	}
	again, err := Mount(f.dir, Options{Table: table, Identify: identify, Log: f.tree.log})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for range 3 {
		r.bind(again, c)
		if out, err := status(); err != nil || strings.Count(out, "\n") != 5 {
			t.Errorf("status of the new daemon: %v\n%s", err, out)
		}
		if got := len(r.mounts()); got > 2*once {
			t.Errorf("%d mounts for %d files", got, once)
		}
	}

	// A container that is about to start.
	soon := newRoom(t, "private")
	soon.mustRun("sh", "-c", "mkdir /run/root && mount --rbind / /run/root")
	if err := container.BindController(container.Binding{
		Dir: again.NamelessDir(c), Server: again.Server(), Namespace: soon.ns, Root: "/run/root",
	}); err != nil {
		t.Fatal(err)
	}
	if got := soon.mounts(); got != nil {
		t.Errorf("bound in the wrong root: %v", got)
	}
	soon.mustRun("cat", "/run/root"+stockDir+"/status.7")
	if text := soon.mustRun("cat", "/run/root"+stockDir+"/nports"); text != "4\n" {
		t.Errorf("nports below a root of its own: %q", text)
	}

	if err := unix.Mount("", "/sys", "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Mount("", "/sys", "", unix.MS_PRIVATE, "")
	shared := newRoom(t, "unchanged")
	err = container.BindController(container.Binding{Dir: again.NamelessDir(c), Server: again.Server(), Namespace: shared.ns})
	if err == nil || !strings.Contains(err.Error(), "shared") || shared.mounts() != nil {
		t.Errorf("bind where /sys is shared: %v, mounts %v", err, shared.mounts())
	}
	newRoom(t, "slave").bind(again, c)
	if strings.Contains(read(t, "/proc/self/mountinfo"), stockDir) {
		t.Error("the host's own files are covered")
	}
}

// A daemon that binds what it serves itself can be killed at any moment: no thread
// of it waits for ever for an answer of another.
func TestGuestKilledWhileBinding(t *testing.T) {
	for round := range 10 {
		cmd := helper(t, "bind "+must.TempDir(t)+"/sys")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for range 1 + round%3 {
			if line, err := lines.ReadString('\n'); line != "bound\n" {
				t.Fatalf("the daemon says %q, %v", line, err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
	}
}

// A caller in pid, mount and user namespaces of its own attaches, and so does one
// in the namespace of the daemon.
func TestGuestCallerInNamespaces(t *testing.T) {
	f, table := start(t, 1, nil)
	made, err := table.Create(controller.Config{Driver: &controller.User{Timeout: patience}, UID: 100_000, GID: 100_000, Policy: policy.Open()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(f.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{f.NamelessDir(made[0]): true, f.NamelessDir(table.Controller(0)): false} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cmd := helper(t, fmt.Sprintf("attach %s/attach %s", path, l.Addr()))
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100_000, Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
			UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{NoSetGroups: true},
		}
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		serve(t, peer)
		err = cmd.Wait()
		if want != (err == nil) || !want && !strings.Contains(out.String(), unix.EACCES.Error()) {
			t.Errorf("attach with %s: %v %s", path, err, out.String())
		}
	}
	if made[0].Device(0) == nil {
		t.Error("there is no device")
	}
}
