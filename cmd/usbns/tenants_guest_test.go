//go:build guest

//vmexec:modules usb-storage sd_mod sg snd-usb-audio
//vmexec:file ../../docs/containers.md

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/doctor"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/runtimestest"
	"github.com/usbns/usbns/usbip"
)

// A tenant is a container with a controller of its name, and devices.
type tenant struct {
	*runtimestest.Container
	t       *testing.T
	empty   sight // without devices
	devices []escape.Target
}

// A sight is what a container has in /dev and in /sys.
type sight struct {
	Nodes []string // device nodes
	Links []string // what the directories by class and number lead to
	Hubs  []string // root hubs, which are no devices of the container's
}

// TestGuestContainersOfRuntimes has containers of LXC, runc and crun beside each
// other, made as docs/containers.md says, each with three devices. Each has the
// nodes and links of its own and no others, whatever their runtime changes, and
// when the daemon is killed and the next one comes. The device that went in
// between has left nothing. That of runc has a controller of the kernel's alone,
// and those of LXC and crun have it after that.
func TestGuestContainersOfRuntimes(t *testing.T) {
	runtimestest.CheckLeaks(t)
	const dir = "/run/usbns"
	kill := startDaemonProcess(t, dir)
	kinds := []string{
		"disk", "fingerprint", "signpad", // lxc's
		"audio", "signpad", "disk", // runc's
		"signpad", "ftdi", "camera", // crun's
		"signpad",
	}
	nodes := map[string]int{
		"disk":        4, // usb, sda, sg0, bsg/0:0:0:0
		"audio":       4, // usb, controlC0, pcmC0D0p, pcmC0D0c
		"camera":      4, // usb, video0, video1, media0
		"signpad":     3, // usb, hidraw, event
		"ftdi":        3, // usb, ttyUSB0, gpiochip0
		"fingerprint": 1, // usb
	}
	exported := exportDevices(t, kinds...)
	documented(t, "Without a runtime", "")
	documented(t, "A controller", "lxc", "--allow", "storage")
	documented(t, "A controller", "runc", "--allow", "storage", "--exclusive")
	documented(t, "A controller", "crun")
	var all []*tenant
	for _, r := range runtimestest.All {
		all = append(all, startTenant(t, r))
	}
	lxc, runc, crun := all[0], all[1], all[2]
	for i, kind := range kinds[:9] {
		n := all[i/3]
		n.devices = append(n.devices, attachTo(t, n.Name, fmt.Sprintf("1-%d", i+1), nodes[kind]))
	}
	for _, n := range all {
		n.seesOwn()
		n.Update()
		n.isPrivate()
	}
	kill(syscall.SIGKILL)
	for _, n := range all {
		n.opensOwn(all)
	}
	exported[3].Close() // runc's first goes while no daemon is there
	waitUntil(t, "the sound card is gone", func() bool {
		_, err := os.Stat(runc.devices[0].Path)
		return errors.Is(err, fs.ErrNotExist)
	})
	runc.devices = runc.devices[1:]
	startDaemonProcess(t, dir)
	for _, n := range all {
		n.seesOwn()
		n.opensOwn(all)
		n.usesOwn()
	}
	hasWhole(t, runc, all)
	if out, err := crun.Run("sh", "-c", echoFTDI); err != nil || out != "there and back\n" {
		t.Errorf("the serial adapter sends back %q, %v", out, err)
	}
	refuseForeignWriters(t, runc, crun)
	if out, err := lxc.Run("sh", "-ec", "for p in 2 0 1; do usbip detach -p $p; done"); err != nil {
		t.Errorf("detach inside: %v\n%s", err, out)
	}
	lxc.seesNone()
	crun.seesOwn()
	for _, n := range all {
		n.Stop()
	}
	waitUntil(t, "nothing is attached", func() bool { return inUse(t) == "" })
	proveLeak(t, "runc", "crun")
	installed(t, "controller", "delete", "lxc", "runc", "crun")
	for _, r := range []runtimestest.Runtime{runtimestest.LXC, runtimestest.Crun} {
		documented(t, "A controller", string(r), "--exclusive")
		n := startTenant(t, r)
		n.devices = append(n.devices, attachTo(t, n.Name, "1-7", 3))
		n.seesOwn()
		n.opensOwn([]*tenant{n})
		hasWhole(t, n, []*tenant{n})
		n.Stop()
		waitUntil(t, "nothing is attached", func() bool { return inUse(t) == "" })
		installed(t, "controller", "delete", n.Name)
	}
}

func startTenant(t *testing.T, r runtimestest.Runtime) *tenant {
	t.Helper()
	n := &tenant{Container: startWithController(t, r, string(r)), t: t}
	n.empty = n.look()
	return n
}

// hasWhole fails the test unless the container has had both root hubs of the
// kernel's last controller, from the start, and its devices and nobody else's are
// there.
func hasWhole(t *testing.T, n *tenant, all []*tenant) {
	t.Helper()
	const whole = "vhci_hcd.7"
	if list := installed(t, "controller", "list", "--json"); strings.Count(list, `"exclusive": "`+whole+`"`) != 1 {
		t.Errorf("controllers are\n%s", list)
	}
	dir := "/sys/devices/platform/" + whole
	hubs, err := filepath.Glob(dir + "/usb*")
	if err != nil || len(hubs) != 2 || !slices.Equal(n.empty.Hubs, hubs) {
		t.Errorf("%s has the root hubs %v, want %v, %v", n.Name, n.empty.Hubs, hubs, err)
	}
	for _, other := range all {
		for _, device := range other.devices {
			if strings.HasPrefix(device.Path, dir+"/") != (other == n) {
				t.Errorf("a device of %s is at %s", other.Name, device.Path)
			}
		}
	}
}

// proveLeak has the doctor find out that a container hears of the devices of all.
// The neighbour, with the other controller, has none.
func proveLeak(t *testing.T, controller, neighbour string) {
	t.Helper()
	c := runtimestest.Start(t, runtimestest.Runc, runtimestest.Config{
		Name: controller, OCI: installed(t, "config", "oci", "-i", controller, "--allow-events"),
	})
	attachTo(t, controller, "1-7", 3)
	attachTo(t, neighbour, "1-10", 3)
	answer, well := diagnose(t, controller)
	if well {
		t.Error("the exit status says that all is private")
	}
	var checks []doctor.Check
	must.OK(t, json.Unmarshal([]byte(answer), &checks))
	for _, c := range checks {
		if (c.State == doctor.No) != (c.Name == "events") {
			t.Errorf("the doctor finds %+v", c)
		}
	}
	if answer, well = diagnose(t, controller, "--prove"); well {
		t.Error("the exit status says that nothing gets through")
	}
	var proof doctor.Proof
	must.OK(t, json.Unmarshal([]byte(answer), &proof))
	for _, a := range proof.Attempts {
		if (a.Verdict == doctor.Escaped) != (a.Case == "uevents") || a.Verdict == doctor.Blind {
			t.Errorf("the doctor proves %+v", a)
		}
	}
	c.Stop()
	installed(t, "detach", "-i", neighbour, "-p", "0")
}

// look looks from outside, beneath a root directory.
func look(t *testing.T, root string) (s sight) {
	t.Helper()
	err := filepath.WalkDir(root+"/dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == "pts" {
			return fs.SkipDir
		}
		// Not d.Type, which is that of what a node may be mounted on.
		if info, err := d.Info(); err == nil && info.Mode()&fs.ModeDevice != 0 {
			s.Nodes = append(s.Nodes, strings.TrimPrefix(path, root))
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // one may go meanwhile
		t.Fatal(err)
	}
	for _, pattern := range []string{"/sys/class/*/*", "/sys/block/*", "/sys/dev/*/*"} {
		links, err := filepath.Glob(root + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil {
				s.Links = append(s.Links, filepath.Join(strings.TrimPrefix(filepath.Dir(link), root), to))
			}
		}
	}
	hubs, err := filepath.Glob(root + "/sys/bus/usb/devices/usb*")
	if err != nil {
		t.Fatal(err)
	}
	for _, hub := range hubs {
		if to, err := os.Readlink(hub); err == nil {
			s.Hubs = append(s.Hubs, filepath.Join("/sys/bus/usb/devices", to))
		}
	}
	s.sort()
	return s
}

func (s *sight) sort() {
	slices.Sort(s.Nodes)
	slices.Sort(s.Links)
	slices.Sort(s.Hubs)
	s.Hubs = slices.Compact(s.Hubs)
}

func (n *tenant) look() sight { return look(n.t, fmt.Sprintf("/proc/%d/root", n.PID())) }

// own is what the host shows of the device, beside what the container always has.
func (n *tenant) own() sight {
	own := sight{slices.Clone(n.empty.Nodes), slices.Clone(n.empty.Links), slices.Clone(n.empty.Hubs)}
	for _, link := range look(n.t, "").Links {
		if slices.ContainsFunc(n.devices, func(d escape.Target) bool { return strings.HasPrefix(link+"/", d.Path+"/") }) {
			own.Links = append(own.Links, link)
		}
	}
	for _, device := range n.devices {
		for _, node := range device.Nodes {
			own.Nodes = append(own.Nodes, "/dev/"+node.Name)
		}
		own.Hubs = append(own.Hubs, filepath.Dir(device.Path))
	}
	own.sort()
	return own
}

// awaitSight waits until the container sees that.
func (n *tenant) awaitSight(want func() sight) {
	n.t.Helper()
	var diff string
	defer func() {
		if diff != "" {
			n.t.Errorf("%s sees (+) what it should not, and not (-) what it should:\n%s", n.Name, diff)
		}
	}()
	waitUntil(n.t, n.Name+" sees its device", func() bool {
		diff = cmp.Diff(want(), n.look())
		return diff == ""
	})
}

// seesOwn waits until the container sees its own device and nothing else.
func (n *tenant) seesOwn() {
	n.t.Helper()
	n.awaitSight(n.own)
}

// usesOwn runs the stock tools inside, and ours, which find the container's own
// socket.
func (n *tenant) usesOwn() {
	n.t.Helper()
	out, err := n.Run("sh", "-c", "lsusb -t; lsusb -v 2>/dev/null; udevadm info --export-db; usbip port")
	for word, hubs := range map[string]int{": ID ": 1, " If 0, ": 0, "\nDevice Descriptor:": 1, "\nE: DEVTYPE=usb_device\n": 1, "<Port in Use>": 0} {
		if err != nil || strings.Count(out, word) != len(n.devices)+hubs*len(n.empty.Hubs) {
			n.t.Errorf("%s has %q %d times, %v\n%s", n.Name, word, strings.Count(out, word), err, out)
		}
	}
	out, err = n.Run("usbns", "port", "-a")
	if err != nil || strings.Count(out, "\n") != 1+len(n.devices) {
		n.t.Errorf("usbns port in %s prints %v\n%s", n.Name, err, out)
	}
}

// isPrivate has the doctor look at it, and try to reach another's device.
func (n *tenant) isPrivate() {
	n.t.Helper()
	if found := documented(n.t, "Is it private?", n.Name); strings.Contains(found, " "+string(doctor.Partly)+" ") {
		n.t.Errorf("the doctor says\n%s", found)
	}
}

// seesNone waits until the container sees what it did without its device.
func (n *tenant) seesNone() {
	n.t.Helper()
	n.awaitSight(func() sight { return n.empty })
}

// opensOwn opens the nodes of all tenants and of all root hubs, of the host's
// /dev, in the cgroup of one: what its guard lets through are those of its own
// devices.
func (n *tenant) opensOwn(all []*tenant) {
	n.t.Helper()
	hubs, err := filepath.Glob("/dev/bus/usb/*/001")
	must.OK(n.t, err)
	words := append([]string{"-c", `for n; do { true <"$n"; } 2>/dev/null && echo "$n"; done`, "sh"}, hubs...)
	want := ""
	for _, other := range all {
		for _, device := range other.devices {
			for _, node := range device.Nodes {
				words = append(words, "/dev/"+node.Name)
				if other == n {
					want += "/dev/" + node.Name + "\n"
				}
			}
		}
	}
	if out, _ := n.inCgroup("sh", words...).CombinedOutput(); string(out) != want {
		n.t.Errorf("the cgroup of %s opens\n%swant\n%s", n.Name, out, want)
	}
}

// inCgroup is a program of the host in the container's cgroup.
func (n *tenant) inCgroup(name string, args ...string) *exec.Cmd {
	n.t.Helper()
	cgroup, err := os.Open(n.cgroup())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { cgroup.Close() })
	cmd := exec.CommandContext(n.t.Context(), name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	return cmd
}

func (n *tenant) cgroup() string {
	n.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", n.PID()))
	if err != nil {
		n.t.Fatal(err)
	}
	return filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(strings.TrimSpace(string(text)), "0::"))
}

// refuseForeignWriters gives a file of one container's controller to a process
// of another container, which is root there as well.
func refuseForeignWriters(t *testing.T, owner, stranger *tenant) {
	t.Helper()
	conn, err := usbip.Dial(t.Context(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	info, err := usbip.RequestImport(t.Context(), conn, "1-10")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	path := fmt.Sprintf("/proc/%d/root/sys/devices/platform/vhci_hcd.0/attach", owner.PID())
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	attach := os.NewFile(uintptr(fd), path)
	defer attach.Close()
	line := fmt.Sprintf("7 3 %d %d", info.DevID(), info.Speed) // the socket is descriptor 3
	write := func(n *tenant, script string, args ...string) (string, error) {
		cmd := n.inCgroup("sh", append([]string{"-c", script, "sh"}, args...)...)
		cmd.ExtraFiles = []*os.File{socket, attach}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	open := func(by *tenant) (string, error) {
		return write(by, `exec nsenter -t "$1" -a sh -c "exec /bin/echo $2 >/proc/self/fd/4"`, fmt.Sprint(by.PID()), line)
	}
	const denied = "Operation not permitted"
	if out, err := open(stranger); err == nil || !strings.Contains(out, denied) {
		t.Errorf("opened and written by a stranger: %v\n%s", err, out)
	}
	// One that the owner has opened.
	out, err := write(owner, `exec 5>/proc/self/fd/4
		sh -c 'echo $$ >"$1/cgroup.procs" && exec nsenter -t "$2" -a sh -c "exec /bin/echo $3 >&5"' sh "$@"`,
		stranger.cgroup(), fmt.Sprint(stranger.PID()), line)
	if err == nil || !strings.Contains(out, denied) {
		t.Errorf("written by a stranger: %v\n%s", err, out)
	}
	if out, err := open(owner); err != nil {
		t.Errorf("opened and written by the owner: %v\n%s", err, out)
	}
	installed(t, "detach", "-i", owner.Name, "-p", "7")
	owner.seesOwn()
}
