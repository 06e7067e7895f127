//go:build guest

//vmexec:modules vhci-hcd usbhid hid-generic evdev usb-storage sd_mod snd-usb-audio usbmon uhid uinput fuse overlay

package escape

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hopeless are the cases that fail where nothing protects, and why.
var hopeless = map[string]string{
	"mount-devtmpfs-userns": "only the first user namespace may mount it",
	"mount-debugfs-userns":  "only the first user namespace may mount it",
	"mount-fusectl-userns":  "only the first user namespace may mount it",
	"overlay-under-userns":  "what is mounted below /sys is locked, and overlayfs refuses to uncover it",
	"uevents-userns":        "the kernel tells its events to the first user namespace only",
}

// prepared are the cases that need something that TestGuestUnprotectedHost does
// not have: TestGuestPrepared has it.
var prepared = map[string]func(t *testing.T) Known{
	"proc-disks":    func(t *testing.T) Known { return neighbour(plug(t, "disk", "HERS-disk", 3)) },
	"proc-drivers":  plugAudio,
	"detach-tool":   func(t *testing.T) Known { return neighbour(plug(t, "scanner", "HERS-scanner", 3)) },
	"mount-fusectl": startFUSE,
	"fuse-abort":    startFUSE,
	"fuse-number":   serveFUSE,
	"fuse-handle":   serveFUSE,
	"guard-detach":  guardRoot,
}

// elsewhere are the cases that need what no kernel does: tests on the host
// have it.
var elsewhere = map[string]string{
	"attach-foreign": "the kernel looks descriptors up in the writer",
}

// On a machine without protection everything must be reached, or the suite is
// blind.
func TestGuestUnprotectedHost(t *testing.T) {
	own := plug(t, "scanner", "OWN-4711", 3)
	hers := plug(t, "scanner", "HERS-0815", 3)
	spread(t, &hers)
	provoke(t, own, hers)

	cases := map[string]Case{}
	for _, c := range Cases() {
		cases[c.Name] = c
	}
	for _, r := range runSuite(t, Known{Own: own, Neighbour: hers}) {
		t.Logf("%-24s own=%-5v reached=%-5v %s", r.Case, r.Own, r.Reached, r.Text)
		must := !r.Own && hopeless[r.Case] == "" && prepared[r.Case] == nil && elsewhere[r.Case] == ""
		if !r.Reached && (must || r.Own && cases[r.Case].Own) {
			t.Errorf("%s is blind (own device: %v): %s", r.Case, r.Own, r.Text)
		}
		if r.Reached && !r.Own && hopeless[r.Case] != "" {
			t.Errorf("%s succeeds: %s", r.Case, r.Text)
		}
	}
}

func TestGuestPrepared(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(prepared)) {
		t.Run(name, func(t *testing.T) {
			if r := try(t, name, prepared[name](t)); !r.Reached {
				t.Errorf("blind: %s", r.Text)
			} else {
				t.Log(r.Text)
			}
		})
	}
}

// Masks alone keep a container from seeing its neighbours only if it cannot
// undo them.
func TestGuestMasks(t *testing.T) {
	hers := plug(t, "scanner", "HERS-0815", 3)
	for _, dir := range []string{"/sys/devices/platform", "/sys/bus/usb/devices", "/dev/bus/usb", "/dev/input"} {
		mustMount(t, "mask", dir, "tmpfs", 0, "")
	}
	for _, n := range hers.Nodes {
		if strings.HasPrefix(n.Name, "hidraw") {
			mustMount(t, "/dev/null", "/dev/"+n.Name, "", unix.MS_BIND, "")
		}
	}
	for name, want := range map[string]bool{
		"sysfs-path":           false,
		"sysfs-bus":            false,
		"node-open":            false,
		"umount":               true,
		"umount-userns":        false,
		"move-mask":            true,
		"move-mask-userns":     false,
		"bind-under":           true,
		"bind-under-userns":    false,
		"overlay-under":        true,
		"overlay-under-userns": false,
		"mount-sysfs":          true,
		"mount-sysfs-userns":   false,
		"node-handle":          true,
	} {
		if r := try(t, name, neighbour(hers)); r.Reached != want {
			t.Errorf("%s: reached %v, want %v: %s", name, r.Reached, want, r.Text)
		}
	}
}

func neighbour(target Target) Known {
	return Known{
		Own:       Target{Serial: "OWN", BusID: "9-9", Path: "/sys/devices/none/9-9"},
		Neighbour: target,
	}
}

// try runs one case.
func try(t *testing.T, name string, known Known) Result {
	t.Helper()
	all := Cases()
	i := slices.IndexFunc(all, func(c Case) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no case %s", name)
	}
	a := &attempt{Known: known, root: "/", dir: t.TempDir()}
	return a.result(all[i])
}

// runSuite runs the suite as a process.
func runSuite(t *testing.T, known Known) (results []Result) {
	t.Helper()
	text, err := json.Marshal(known)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = ProcessName
	cmd.Stdin = bytes.NewReader(text)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, &complaint)
	}
	for lines := json.NewDecoder(&out); ; {
		var r Result
		if err := lines.Decode(&r); errors.Is(err, io.EOF) {
			return results
		} else if err != nil {
			t.Fatal(err)
		}
		results = append(results, r)
	}
}

// plugAudio waits for the card, which is listed after its nodes are made.
func plugAudio(t *testing.T) Known {
	hers := plug(t, "audio", "HERS-audio", 3)
	product, err := os.ReadFile(hers.Path + "/product")
	if err != nil {
		t.Fatal(err)
	}
	hers.Names = []string{strings.TrimSpace(string(product))}
	for cards := ""; !strings.Contains(cards, hers.Names[0]); time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile("/proc/asound/cards")
		if err != nil {
			t.Fatal(err)
		}
		cards = string(text)
	}
	return neighbour(hers)
}

// guardRoot attaches a program to the root cgroup that refuses all devices.
func guardRoot(t *testing.T) Known {
	hers := plug(t, "scanner", "HERS-0815", 3)
	const (
		programAttach = 8
		typeDevice    = 15
	)
	instructions := [2]uint64{0x00000000_0000_00_b7, 0x00000000_0000_00_95} // r0 = 0; exit
	license := []byte("GPL\x00")
	program, err := bpf(bpfProgLoad, &struct {
		kind, count           uint32
		instructions, license unsafe.Pointer
		more                  [12]uint32
	}{
		kind: typeDevice, count: 2,
		instructions: unsafe.Pointer(&instructions[0]), license: unsafe.Pointer(&license[0]),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(program)
	cgroup, err := unix.Open("/sys/fs/cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(cgroup)
	if _, err := bpf(programAttach, &struct{ target, program, attachType, flags uint32 }{uint32(cgroup), uint32(program), bpfCgroupDevice, 0}); err != nil {
		t.Fatal(err)
	}
	if r := try(t, "node-mknod", neighbour(hers)); r.Reached {
		t.Errorf("the guard lets through: %s", r.Text)
	}
	return neighbour(hers)
}
