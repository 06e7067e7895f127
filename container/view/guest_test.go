//go:build guest

//vmexec:modules vhci-hcd usbhid hid-generic evdev cdc-acm usbmon

package view_test

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usbns/usbns/container/box"
	"github.com/usbns/usbns/container/view"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/runtimestest"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
)

const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Args[0] == box.InitName {
		os.Exit(box.Main())
	}
	os.Exit(m.Run())
}

// A shell is a box that does what it is told.
type shell struct {
	*box.Box
	*runtimestest.Shell
	t      *testing.T
	cgroup string
}

func startShell(t *testing.T, name string, userNS uint32) *shell {
	t.Helper()
	s := &shell{t: t, cgroup: filepath.Join("/sys/fs/cgroup", name)}
	if err := os.Mkdir(s.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.Shell = runtimestest.NewShell(t, in, out)
	s.Box, err = box.Start(box.Config{
		Argv: []string{"sh"}, Cgroup: s.cgroup, UserNS: userNS,
		Stdin: theirIn, Stdout: theirOut, Stderr: theirOut,
	})
	theirIn.Close()
	theirOut.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if t.Failed() {
			_ = s.Kill()
		} else if status, err := s.Wait(); status != 0 || err != nil {
			t.Errorf("the shell ends with %d, %v", status, err)
		}
		out.Close()
		if err := os.Remove(s.cgroup); err != nil {
			t.Error(err)
		}
	})
	return s
}

// export serves emulated devices, one after the other as 1-1, 1-2 and so on, and
// attaches them to the kernel.
func export(t *testing.T, kinds ...string) (dirs []string) {
	t.Helper()
	var devices []usb.Device
	for _, kind := range kinds {
		d, err := emulate.Open(kind, emulate.Options{Serial: "serial-of-" + kind})
		must.OK(t, err)
		devices = append(devices, d)
	}
	usbiptest.Export(t, usbiptest.StockAddr, devices...)
	for i, kind := range kinds {
		busid := fmt.Sprintf("1-%d", i+1)
		if out, err := exec.Command("usbip", "attach", "-r", "127.0.0.1", "-b", busid).CombinedOutput(); err != nil {
			t.Fatalf("usbip attach: %v\n%s", err, out)
		}
		dirs = append(dirs, waitDevice(t, "serial-of-"+kind))
	}
	return dirs
}

// waitDevice waits until a device is there and configured.
func waitDevice(t *testing.T, serial string) string {
	t.Helper()
	for start := time.Now(); time.Since(start) < patience; time.Sleep(time.Millisecond) {
		found, _ := filepath.Glob("/sys/bus/usb/devices/*/serial")
		for _, f := range found {
			text, _ := os.ReadFile(f)
			config, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "bConfigurationValue"))
			if strings.TrimSpace(string(text)) == serial && strings.TrimSpace(string(config)) != "" {
				dir, err := filepath.EvalSymlinks(filepath.Dir(f))
				if err != nil {
					t.Fatal(err)
				}
				return dir
			}
		}
	}
	t.Fatalf("no device %s", serial)
	return ""
}

func openView(t *testing.T, k *view.Keeper, s *shell, root uint32) *view.View {
	t.Helper()
	v, err := view.Open(view.Config{PID: s.PID(), Root: "/", Cgroup: s.cgroup, UID: root, GID: root, RootUID: root})
	if err != nil {
		t.Fatal(err)
	}
	k.Keep(v)
	t.Cleanup(func() {
		k.Drop(v)
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func newKeeper(t *testing.T) *view.Keeper {
	t.Helper()
	k, err := view.NewKeeper(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// want runs a command in the box, whose output must be like this.
func (s *shell) want(command, want string) {
	s.t.Helper()
	if got := s.Say(command + " 2>&1"); got != want {
		s.t.Errorf("%s prints\n%s, want\n%s", command, got, want)
	}
}

// waitFor runs a command in the box until it succeeds.
func (s *shell) waitFor(command string) {
	s.t.Helper()
	for start := time.Now(); s.Say(command+" >/dev/null 2>&1 && echo yes") != "yes\n"; {
		if time.Since(start) > patience {
			s.t.Fatalf("%s has not come true", command)
		}
	}
}

const (
	asUser     = "setpriv --reuid=1000 --regid=1000 --clear-groups "
	scannerUSB = "ID 1209:0001 usbns usbns bar-code scanner"
	serialUSB  = "ID 1209:0005 usbns usbns serial adapter"
)

func TestGuestViews(t *testing.T) {
	for _, userNS := range []bool{false, true} {
		t.Run(fmt.Sprintf("userns=%v", userNS), func(t *testing.T) {
			runtimestest.CheckLeaks(t)
			dirs := export(t, "scanner", "serial")
			k := newKeeper(t)
			var boxes [2]*shell
			var views [2]*view.View
			for i := range boxes {
				root := uint32(0)
				if userNS {
					root = uint32(i+1) << 20
				}
				boxes[i] = startShell(t, fmt.Sprintf("box%d", i), root)
				views[i] = openView(t, k, boxes[i], root)
				if err := boxes[i].Run(); err != nil {
					t.Fatal(err)
				}
				boxes[i].want("lsusb", "")
			}
			boxes[0].want("D=$(mktemp -d); mkfifo $D/monitor; udevadm monitor --kernel --subsystem-match=usb/usb_device >$D/monitor & "+
				"exec 5<$D/monitor; head -n3 <&5 >/dev/null", "")
			var remove [2]func() error
			for i, v := range views {
				var err error
				if remove[i], err = v.Add(0, dirs[i]); err != nil {
					t.Fatal(err)
				}
			}
			seesOwn(boxes[0], scannerUSB, "serial-of-serial", dirs[1])
			seesOwn(boxes[1], serialUSB, "serial-of-scanner", dirs[0])
			cannotUncover(boxes[0])
			cannotMakeNodes(boxes[0], userNS)
			comesAndGoes(t, boxes[0], views[0], dirs[0], remove[0])
		})
	}
}

func seesOwn(s *shell, own, otherSerial, otherDir string) {
	t := s.t
	t.Helper()
	for _, as := range []string{"", asUser} {
		if got := s.Say(as + "lsusb 2>&1"); strings.Count(got, "\n") != 1 || !strings.Contains(got, own) {
			t.Errorf("%slsusb prints\n%s", as, got)
		}
		if got := s.Say(as + "lsusb -t 2>&1"); strings.Count(got, "Port 1: Dev 1,") != 1 || strings.Contains(got, "No such") {
			t.Errorf("%slsusb -t prints\n%s", as, got)
		}
		if got := s.Say(as + "udevadm info --export-db 2>&1"); strings.Count(got, "E: DEVTYPE=usb_device\n") != 1 {
			t.Errorf("%sudevadm info prints\n%s", as, got)
		}
	}
	if got := s.Say("ls /dev/bus/usb/*"); len(strings.Fields(got)) != 1 {
		t.Errorf("the nodes of usbfs are\n%s", got)
	}
	s.want("head -c 1 /dev/bus/usb/*/* | od -An -td1", "   18\n")
	s.want("head -c 1 /dev/usbns/0/usb | od -An -td1", "   18\n")
	if got := s.Say("grep -rlsE '" + otherSerial + "|" + filepath.Base(otherDir) + ":1' /sys/bus /sys/class /sys/dev /sys/devices/platform /proc/self/mountinfo /run"); got != "" {
		t.Errorf("what tells of another's device:\n%s", got)
	}
	s.want("find /sys /proc/bus /proc/tty -name '"+filepath.Base(otherDir)+"*'", "")
}

// cannotUncover tries to see what is covered.
func cannotUncover(s *shell) {
	for _, command := range []string{
		"umount /sys/bus", "umount -l /sys/devices", "umount /sys", "umount /proc/bus", "umount /dev",
		"mkdir -p $D/mnt; mount -t sysfs none $D/mnt",
		"unshare -m mount -t sysfs none $D/mnt",
		"unshare -Urm mount -t sysfs none $D/mnt",
		"unshare -Urm umount /sys/devices",
		"unshare -Urnm mount -t sysfs none $D/mnt",
		"echo 0 > /sys/bus/usb/devices/[1-9]-1/authorized",
		"ls /proc/1/root/",
	} {
		if got := s.Say("{ " + command + "; } >$D/out 2>&1 && cat $D/out && echo done"); got != "" {
			s.t.Errorf("%s works:\n%s", command, got)
		}
	}
}

func cannotMakeNodes(s *shell, userNS bool) {
	for _, number := range []string{"c 189 0", "c 189 2", "c 13 64", "c 166 0", "b 8 0", "c 10 223"} {
		if got := s.Say("mknod /dev/forbidden " + number + " 2>/dev/null && echo done"); got != "" {
			s.t.Errorf("a node %s can be made", number)
		}
	}
	if !userNS {
		s.want("mknod /dev/allowed c 1 3 && head -c1 /dev/allowed", "")
	}
}

// comesAndGoes takes the device away, and gives it again.
func comesAndGoes(t *testing.T, s *shell, v *view.View, dir string, remove func() error) {
	t.Helper()
	s.want("read -r line <&5; echo ${line#* }", "add "+strings.TrimPrefix(dir, "/sys")+" (usb)\n")
	s.waitFor("head -c0 /dev/input/event*")
	for range 2 {
		if err := remove(); err != nil {
			t.Fatal(err)
		}
		s.want("lsusb; lsusb -t; ls /dev/usbns/0 /dev/bus/usb/* /dev/input /sys/bus/usb/devices | grep -v :", "\n\n\n")
		var err error
		if remove, err = v.Add(0, dir); err != nil {
			t.Fatal(err)
		}
		if got := s.Say("lsusb"); !strings.Contains(got, scannerUSB) {
			t.Errorf("after it has come again lsusb prints\n%s", got)
		}
	}
	// Unplugged, its nodes go without being told.
	if out, err := exec.Command("usbip", "detach", "-p", "0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.waitFor("! ls /dev/input/* /dev/bus/usb/*/*")
	if err := remove(); err != nil {
		t.Fatal(err)
	}
}

// A container that is not covered, or that has the host's /dev, is shown nothing.
func TestGuestOpenRefuses(t *testing.T) {
	runtimestest.CheckLeaks(t)
	cgroup := "/sys/fs/cgroup/refused"
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(cgroup)
	const cover = "mkdir -p /old; mount --bind /sys/devices/platform /old; " +
		"for d in module bus class dev block devices; do mount -t tmpfs none /sys/$d; done; mkdir /sys/devices/platform; "
	for script, want := range map[string]string{
		"exec sleep 1000":         "is not covered",
		cover + "exec sleep 1000": "/dev",
		cover + "mount --bind /old /sys/devices/platform; exec sleep 1000": "not covered any more",
	} {
		cmd := exec.Command("unshare", "-mn", "sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); ; time.Sleep(time.Millisecond) {
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); string(name) == "sleep\n" {
				break
			}
			if time.Since(start) > patience {
				t.Fatal("the container does not start")
			}
		}
		v, err := view.Open(view.Config{PID: cmd.Process.Pid, Root: "/", Cgroup: cgroup})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %q", script, v, err, want)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
