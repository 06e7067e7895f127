//go:build guest

//vmexec:modules usbhid hid-generic evdev cdc-acm

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/doctor"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/runtimestest"
)

const runPatience = 60 * time.Second

// startDaemonProcess runs a daemon that can be killed.
func startDaemonProcess(t *testing.T, dir string) (kill func(os.Signal)) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "daemon", "--run", dir)
	cmd.Args[0] = "usbns"
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func(s os.Signal) {
		if !killed {
			killed = true
			_ = cmd.Process.Signal(s)
			if err := cmd.Wait(); err != nil && s != syscall.SIGKILL {
				t.Errorf("the daemon ends with %v", err)
			}
		}
	}
	t.Cleanup(func() { kill(syscall.SIGTERM) })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return kill
}

// A runShell is a shell that "usbns run" runs.
type runShell struct {
	t *testing.T
	*runtimestest.Shell
	cmd *exec.Cmd
	in  io.WriteCloser
}

func startRun(t *testing.T, dir string, args ...string) *runShell {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append(append([]string{"run", "--run", dir}, args...), "--", "sh")...)
	cmd.Args[0] = "usbns"
	cmd.Stderr = t.Output()
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
	s := &runShell{t, runtimestest.NewShell(t, in, out), cmd, in}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return s
}

// until says a command until what it prints has a text in it, or has none of it.
func (s *runShell) until(command, text string, want bool) {
	s.t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		got := s.Say(command)
		if strings.Contains(got, text) == want {
			return
		}
		if time.Since(start) > runPatience {
			s.t.Fatalf("%s prints\n%s\nwith %q: want %v", command, got, text, want)
		}
	}
}

// exit ends the shell and returns the exit status of "usbns run".
func (s *runShell) exit(status int) int {
	s.t.Helper()
	fmt.Fprintf(s.in, "exit %d\n", status)
	s.in.Close()
	_ = s.cmd.Wait()
	return s.cmd.ProcessState.ExitCode()
}

const asUser = "setpriv --reuid=1000 --regid=1000 --clear-groups "

// useOwnSockets does without the stock tools, with a device that is exported in
// the container's own network: one user attaches it, and another detaches it.
func (s *runShell) useOwnSockets(attacher, detacher string) {
	s.t.Helper()
	s.Say("usbns export --device fingerprint >/dev/null 2>&1 & exporter=$!")
	s.until("usbns list -r 127.0.0.1", "1-1", true)
	s.until(attacher+"usbns attach -r 127.0.0.1 -b 1-1", "port 1\n", true)
	got := s.Say(detacher + "usbns port -a")
	if strings.Count(got, "\n") != 3 || strings.Count(got, "\n0 ") != 2 || !strings.Contains(got, "fingerprint") {
		s.t.Errorf("usbns port prints\n%s", got)
	}
	if got := s.Say(detacher + "usbns detach -p 1"); got != "" {
		s.t.Errorf("usbns detach prints %s", got)
	}
	s.until(attacher+"usbns port", "fingerprint", false)
	s.Say("kill $exporter")
	owned := s.Say("stat -Lc '%u:%g %a' /dev/usbns/0/* /dev/usbns/*.sock")
	if n := strings.Count(owned, "\n"); n < 4 || strings.Count(owned, "1000:1000 660\n") != n {
		s.t.Errorf("nodes and sockets are of\n%s", owned)
	}
}

// reachNoOthers has the host's sockets in dir.
func (s *runShell) reachNoOthers(dir string) {
	s.t.Helper()
	for command, want := range map[string]string{
		"usbns port -i 1":           "no other can be named",
		"usbns detach -i 1 -p 0":    "no other can be named",
		"usbns controller create":   "administers no controllers",
		"usbns controller delete 0": "administers no controllers",
		"usbns port --run " + dir:   "no daemon answers",
		"setpriv --reuid=1001 --regid=1001 --clear-groups usbns port": "is for the owner of the controller",
	} {
		if got := s.Say(command); !strings.Contains(got, want) {
			s.t.Errorf("%s prints %s, want %q", command, got, want)
		}
	}
}

func TestGuestRun(t *testing.T) {
	exportDevices(t, "signpad", "ftdi")
	for _, userNS := range []bool{false, true} {
		t.Run(fmt.Sprintf("userns=%v", userNS), func(t *testing.T) { testRun(t, userNS) })
	}
}

func testRun(t *testing.T, userNS bool) {
	runtimestest.CheckLeaks(t)
	const dir = "/run/usbns-run"
	kill := startDaemonProcess(t, dir)
	args := []string{"--new", "--owner", "1000:1000"}
	if userNS {
		args = append(args, "--userns")
	}
	var shells [2]*runShell
	for i := range shells {
		shells[i] = startRun(t, dir, args...)
		args = append(args, "--owner", "0:0") // the first one's is user 1000
		if got := shells[i].Say("lsusb; /usr/sbin/usbip port; ls /dev/bus"); strings.Contains(got, "Device") || strings.Contains(got, "Port") {
			t.Errorf("an empty container sees\n%s", got)
		}
		busid := fmt.Sprintf("1-%d", i+1)
		if got := execute(t, "attach", "--run", dir, "-r", "127.0.0.1", "-b", busid, "-i", fmt.Sprint(i)); got != "port 0\n" {
			t.Errorf("attach prints %q", got)
		}
		if i == 0 {
			if err := fail(t, "doctor", "--run", dir, "--prove", "0"); !errors.Is(err, doctor.ErrNoNeighbour) {
				t.Errorf("a proof without a neighbour: %v", err)
			}
		}
	}
	own := [2]string{"signature pad", "FT232"}
	nodes := [2]string{"hidraw", "ttyUSB"}
	sees := func() {
		t.Helper()
		for i := range shells {
			answer, _ := diagnose(t, "--run", dir, fmt.Sprint(i))
			checkPrivate(t, answer, userNS)
		}
		for i, s := range shells {
			s.until("/usr/sbin/usbip port", "Port 00: <Port in Use>", true)
			s.until("ls /dev/usbns/0", "-"+nodes[i], true)
			for _, as := range []string{"", asUser} {
				if got := s.Say(as + "lsusb"); strings.Count(got, "Device ") != 1 || !strings.Contains(got, own[i]) {
					t.Errorf("lsusb prints\n%s, want %s", got, own[i])
				}
			}
			if got := s.Say("udevadm info --export-db"); strings.Count(got, "E: DEVTYPE=usb_device\n") != 1 {
				t.Errorf("udevadm prints\n%s", got)
			}
			if got := s.Say("head -c0 /dev/usbns/0/*-" + nodes[i]); got != "" && nodes[i] == "hidraw" {
				t.Errorf("the node cannot be opened: %s", got)
			}
			if got := s.Say(echoFTDI); (got == "there and back\n") != (nodes[i] == "ttyUSB") {
				t.Errorf("the serial adapter sends back %q", got)
			}
			if got := s.Say("ls /run/usbns-run " + dir); strings.Contains(got, "sock") {
				t.Errorf("the daemon's directory shows\n%s", got)
			}
		}
	}
	sees()

	kill(syscall.SIGKILL)
	if got := shells[0].Say("lsusb"); strings.Count(got, "Device ") != 1 {
		t.Errorf("without a daemon lsusb prints\n%s", got)
	}
	startDaemonProcess(t, dir)
	sees()

	checkProof(t, execute(t, "doctor", "--run", dir, "--prove", "--json", "0"))
	if userNS {
		shells[0].useOwnSockets(asUser, "")
	} else { // with fewer walls
		shells[0].useOwnSockets("", asUser)
		shells[0].reachNoOthers(dir)
	}
	shells[0].Say("/usr/sbin/usbip detach -p 0")
	shells[0].until("lsusb; find /dev/usbns /dev/bus ! -type d ! -type s", "\n", false)
	if got := execute(t, "port", "--run", dir, "-i", "1"); !strings.Contains(got, "FT232") {
		t.Errorf("the neighbour's port shows\n%s", got)
	}
	if status := shells[0].exit(7); status != 7 {
		t.Errorf("exit status %d, want 7", status)
	}
	// Killed, it takes its container with it.
	_ = shells[1].cmd.Process.Signal(unix.SIGKILL)
	_ = shells[1].cmd.Wait()
	for start := time.Now(); execute(t, "controller", "list", "--run", dir, "--json") != "[]\n"; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > runPatience {
			t.Fatalf("controllers are left: %s", execute(t, "controller", "list", "--run", dir, "--json"))
		}
	}
}

// What cannot be made whole is not run, and leaves nothing.
func TestGuestRunFailsClosed(t *testing.T) {
	runtimestest.CheckLeaks(t)
	const dir = "/run/usbns-closed"
	fails := func(want string, args ...string) {
		t.Helper()
		cmd := exec.Command("/proc/self/exe", append([]string{"run", "--run", dir}, args...)...)
		cmd.Args[0] = "usbns"
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "it runs") {
			t.Errorf("usbns run %v: %v, %s, want %q", args, err, out, want)
		}
	}
	echo := []string{"--", "echo", "it runs"}
	fails("no daemon answers", append([]string{"--new"}, echo...)...)
	startDaemonProcess(t, dir)
	fails("no controller", append([]string{"-i", "nobody"}, echo...)...)
	fails("executable file not found", "--new", "--", "no-such-command")

	// A container has one controller.
	shell := startRun(t, dir, "--new", "--driver", "user")
	shell.Say("true")
	client := control.NewClient(dir)
	in, err := client.Container(t.Context(), "0")
	must.OK(t, err)
	_, err = client.Create(t.Context(), control.Create{Name: "second", Driver: "user"})
	must.OK(t, err)
	must.Is(t, client.Enter(t.Context(), "second", in), syscall.EBUSY)
	shell.until("usbns port", "CONTROLLER", true)
	must.OK(t, client.Delete(t.Context(), "second"))
	if status := shell.exit(0); status != 0 {
		t.Errorf("exit status %d", status)
	}

	// Another's program leaves no room for the guard.
	keep := runCgroups + "/keep" // who removes empty ones may still be at it
	for err := os.MkdirAll(keep, 0o755); err != nil; err = os.MkdirAll(keep, 0o755) {
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	defer os.Remove(runCgroups)
	defer os.Remove(keep)
	cgroup, err := os.Open(runCgroups)
	must.OK(t, err)
	defer cgroup.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupDevice, AttachType: ebpf.AttachCGroupDevice, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(cgroup.Fd()), Program: program, Attach: ebpf.AttachCGroupDevice})
	if err != nil {
		t.Fatal(err)
	}
	fails("does not let a guard in", append([]string{"--new"}, echo...)...)
	if got := execute(t, "controller", "list", "--run", dir, "--json"); got != "[]\n" {
		t.Errorf("controllers are left: %s", got)
	}
}

// A container with one of the kernel's controllers whole sees that one's root
// hubs, and nobody else's device comes there.
func TestGuestRunExclusive(t *testing.T) {
	runtimestest.CheckLeaks(t)
	e := startExport(t, "127.0.0.1:3240", "signpad", "serial", "fingerprint")
	defer e.end()
	const dir = "/run/usbns-whole"
	kill := startDaemonProcess(t, dir)
	shells := [2]*runShell{startRun(t, dir, "--exclusive"), nil}
	const hub2, hub3 = "ID 1d6b:0002", "ID 1d6b:0003"
	sees := func(i int, want ...string) {
		t.Helper()
		for _, as := range []string{"", "setpriv --reuid=1000 --regid=1000 --clear-groups "} {
			got := shells[i].Say(as + "lsusb")
			for _, text := range want {
				if strings.Count(got, "Device ") != len(want) || !strings.Contains(got, text) {
					t.Errorf("%slsusb prints\n%s, want %s", as, got, want)
				}
			}
		}
		if got := shells[i].Say("udevadm info --export-db | grep -c DEVTYPE=usb_device"); got != fmt.Sprintln(len(want)) {
			t.Errorf("udevadm knows %q devices, want %s", got, want)
		}
	}
	sees(0, hub2, hub3)
	shells[1] = startRun(t, dir, "--new")
	shells[1].Say(":")
	list := execute(t, "controller", "list", "--run", dir, "--json")
	if strings.Count(list, `"exclusive": "vhci_hcd.7"`) != 1 || strings.Count(list, "exclusive") != 1 {
		t.Errorf("controllers are\n%s", list)
	}
	attach := func(i int, busid string) {
		t.Helper()
		execute(t, "attach", "--run", dir, "-r", "127.0.0.1", "-b", busid, "-i", fmt.Sprint(i))
		shells[i].until("/usr/sbin/usbip port", "<Port in Use>", true)
	}
	attach(1, "1-2")
	attach(0, "1-1")
	seeOwn := func() {
		t.Helper()
		sees(0, hub2, hub3, "signature pad")
		sees(1, "serial adapter")
		for i, at := range []string{"vhci_hcd.7", "vhci_hcd.0"} {
			want := "/sys/devices/platform/" + at + "/"
			if got := shells[i].Say("readlink -f /sys/bus/usb/devices/[1-9]*-[1-9]"); !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 1 {
				t.Errorf("devices are at\n%s, want %s", got, want)
			}
		}
		shells[0].until("ls /dev/usbns/0", "-hidraw", true)
		if got := shells[0].Say("head -c0 /dev/usbns/0/*-hidraw"); got != "" {
			t.Errorf("the node cannot be opened: %s", got)
		}
	}
	seeOwn()
	// The root hubs are to be seen, and not to be used.
	for _, command := range []string{
		"cd /sys/bus/usb/devices; for h in usb*; do IFS=: read -r major minor <$h/dev; mknod /dev/$h c $major $minor && echo made; done",
		"cd /sys/bus/usb/devices; for h in usb*; do echo 1 >$h/authorized_default && echo made; done",
		"find /sys -path '*/vhci_hcd.[0-6]/usb*' -name descriptors | grep -v -- - && echo made",
	} {
		if got := shells[0].Say(command); strings.Contains(got, "made") {
			t.Errorf("%s works:\n%s", command, got)
		}
	}

	kill(syscall.SIGKILL)
	startDaemonProcess(t, dir)
	if got := execute(t, "controller", "list", "--run", dir, "--json"); got != list {
		t.Errorf("controllers are\n%s, and were\n%s", got, list)
	}
	seeOwn()
	shells[0].Say("/usr/sbin/usbip detach -p 0")
	shells[0].until("lsusb", "signature pad", false)
	sees(0, hub2, hub3)
	attach(0, "1-3")
	sees(0, hub2, hub3, "fingerprint reader")
	for _, s := range shells {
		if status := s.exit(0); status != 0 {
			t.Errorf("exit status %d", status)
		}
	}
	if got := execute(t, "controller", "list", "--run", dir, "--json"); got != "[]\n" {
		t.Errorf("controllers are left: %s", got)
	}
}
