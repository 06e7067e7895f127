//go:build guest

package uevent_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/uevent"
)

func listen(t *testing.T) *uevent.Listener {
	t.Helper()
	l, err := uevent.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func trigger(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile("/sys/class/mem/null/uevent", []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// forge sends what looks like an event of the kernel from a process.
func forge(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	text := []byte("add@/devices/forged\x00ACTION=add\x00DEVPATH=/devices/forged\x00SUBSYSTEM=usb\x00")
	if err := unix.Sendto(fd, text, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		t.Fatal(err)
	}
}

func TestGuestListenToTheKernelOnly(t *testing.T) {
	listen(t).Close() // the runtime has opened what it keeps
	before := len(must.Descriptors(t))
	l := listen(t)
	forge(t)
	trigger(t, "change 12345678-1234-1234-1234-123456789abc A=b")
	e, err := l.Receive()
	if err != nil || e.Action != "change" || e.DevPath != "/devices/virtual/mem/null" || e.Env["DEVNAME"] != "null" || e.Env["SYNTH_ARG_A"] != "b" {
		t.Errorf("heard %+v, %v", e, err)
	}
	waiting := make(chan error)
	go func() {
		_, err := l.Receive()
		waiting <- err
	}()
	l.Close()
	if err := <-waiting; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
	if after := len(must.Descriptors(t)); after != before {
		t.Errorf("%d files are open, there were %d", after, before)
	}
}

func TestGuestLostEvents(t *testing.T) {
	l := listen(t)
	long := "change 12345678-1234-1234-1234-123456789abc A=" + strings.Repeat("b", 1000)
	for range 5000 {
		trigger(t, long)
	}
	for {
		_, err := l.Receive()
		if errors.Is(err, uevent.ErrLost) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// monitor runs udev's own listener, with its filter in the kernel, in namespaces
// where the kernel is silent and root is the user 100000 outside.
func monitor(t *testing.T) (lines *bufio.Scanner, netns *os.File) {
	t.Helper()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	cmd := exec.Command("stdbuf", "-oL", "udevadm", "monitor", "--kernel", "--udev", "--subsystem-match=usb/usb_device")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids,
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines = bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "KERNEL - ") { // the last of its greeting
			break
		}
	}
	netns, err = os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Close() })
	return lines, netns
}

func TestGuestSend(t *testing.T) {
	// libudev listens to udev only where it sees this file.
	if err := os.MkdirAll("/run/udev", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/run/udev/control", nil, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	defer os.Remove("/run/udev/control")
	lines, netns := monitor(t)
	s, err := uevent.NewSender(netns, 100000, 100000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	e := uevent.Event{Action: "add", DevPath: "/devices/platform/none", Env: map[string]string{"SUBSYSTEM": "platform"}}
	send := func(path, subsystem, devtype string) {
		t.Helper()
		e.DevPath, e.Env = path, map[string]string{"SUBSYSTEM": subsystem, "DEVTYPE": devtype, "SEQNUM": "7"}
		if err := s.Udev(e); err != nil {
			t.Error(err)
		}
		if err := s.Kernel(e); err != nil {
			t.Error(err)
		}
	}
	send("/devices/other", "platform", "x")
	send("/devices/interface", "usb", "usb_interface")
	trigger(t, "change") // not for that namespace
	send("/devices/device", "usb", "usb_device")
	var got []string
	for len(got) < 2 && lines.Scan() {
		// "UDEV  [12.3] add      /devices/device (usb)"
		if source, event, ok := strings.Cut(lines.Text(), "["); ok {
			_, event, _ = strings.Cut(event, "] ")
			got = append(got, strings.Join(append([]string{strings.TrimSpace(source)}, strings.Fields(event)...), " "))
		}
	}
	slices.Sort(got)
	want := []string{"KERNEL add /devices/device (usb)", "UDEV add /devices/device (usb)"}
	if !slices.Equal(got, want) {
		t.Errorf("udevadm hears %q, want %q", got, want)
	}
}

func TestGuestSenderRefuses(t *testing.T) {
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if s, err := uevent.NewSender(own, 0, 0); !errors.Is(err, uevent.ErrHeard) {
		t.Errorf("a sender for our own namespace: %v, %v", s, err)
	}
	_, netns := monitor(t)
	before := len(must.Descriptors(t))
	s, err := uevent.NewSender(netns, 100000, 100000)
	if err != nil {
		t.Fatal(err)
	}
	bad := uevent.Event{Action: "add", DevPath: "relative"}
	if s.Kernel(bad) == nil || s.Udev(bad) == nil {
		t.Error("a malformed event is sent")
	}
	s.Close()
	good := uevent.Event{Action: "add", DevPath: "/devices/a"}
	if err := s.Kernel(good); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Kernel after Close: %v", err)
	}
	if err := s.Udev(good); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Udev after Close: %v", err)
	}
	if after := len(must.Descriptors(t)); after != before {
		t.Errorf("%d files are open, there were %d", after, before)
	}
}
