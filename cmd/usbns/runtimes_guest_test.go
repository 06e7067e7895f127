//go:build guest

//vmexec:tree runtimes
//vmexec:modules overlay vhci-hcd usbhid hid-generic evdev fuse
//vmexec:file ../../bin/usbns:/usr/bin/usbns

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/doctor"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/runtimestest"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// patience bounds what is waited for, so that a test fails and does not hang.
const patience = 60 * time.Second

// installed runs the program as it is installed.
func installed(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/usr/bin/usbns", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("usbns %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// exportDevices exports devices as 1-1, 1-2 and so on, each with a serial of its
// own.
func exportDevices(t *testing.T, kinds ...string) (devices []usb.Device) {
	t.Helper()
	exporter := &usbip.Exporter{}
	for i, kind := range kinds {
		busid := fmt.Sprintf("1-%d", i+1)
		device, err := openKind(kind, serialOf(busid))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { device.Close() })
		devices = append(devices, device)
		if err := exporter.Add(busid, device); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:3240")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- exporter.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-served
	})
	return devices
}

func openKind(kind, serial string) (usb.Device, error) {
	switch kind {
	case "camera":
		return newCamera(serial)
	case "ftdi":
		return newFTDI(serial)
	}
	return emulate.Open(kind, emulate.Options{Serial: serial})
}

func serialOf(busid string) string { return "SERIAL-OF-" + busid }

// documented runs the commands of a section of docs/containers.md, for another
// controller than alice and with more words after the last.
func documented(t *testing.T, section, controller string, more ...string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/containers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := bytes.Cut(text, []byte("\n## "+section+"\n"))
	if !ok {
		t.Fatalf("docs/containers.md has no section %s", section)
	}
	text, _, _ = bytes.Cut(text, []byte("\n## "))
	var script strings.Builder
	for line := range bytes.Lines(text) {
		if command, ok := bytes.CutPrefix(line, []byte("    ")); ok {
			script.Write(bytes.ReplaceAll(command, []byte("alice"), []byte(controller)))
		}
	}
	words := append([]string{strings.TrimSpace(script.String())}, more...)
	var complaint strings.Builder
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", strings.Join(words, " "))
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", words, err, out, &complaint)
	}
	return string(out)
}

// startWithController starts a container that has the controller of its name.
func startWithController(t *testing.T, r runtimestest.Runtime, name string) *runtimestest.Container {
	t.Helper()
	cfg := runtimestest.Config{Name: name, UserNS: true}
	if r == runtimestest.LXC {
		dir := "/var/lib/lxc/" + name
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		documented(t, "LXC", name)
		lines, err := os.ReadFile(filepath.Join(dir, "config"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.LXC = string(lines)
	} else {
		cfg.OCI = documented(t, "runc, crun", name)
	}
	return runtimestest.Start(t, r, cfg)
}

// attachTo attaches a device to a controller and describes it once it has so
// many nodes.
func attachTo(t *testing.T, controller, busid string, nodes int) escape.Target {
	t.Helper()
	documented(t, "Attaching", controller, "-r", "127.0.0.1", "-b", busid)
	return describe(t, serialOf(busid), nodes)
}

// describe waits until a device has that many nodes.
func describe(t *testing.T, serial string, nodes int) (target escape.Target) {
	t.Helper()
	waitUntil(t, serial+" has its nodes", func() bool {
		files, err := filepath.Glob("/sys/bus/usb/devices/*/serial")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if text, _ := os.ReadFile(file); strings.TrimSpace(string(text)) == serial {
				target, err = escape.Describe(filepath.Dir(file))
				return err == nil && len(target.Nodes) >= nodes
			}
		}
		return false
	})
	return target
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("it does not come true that %s", what)
		}
	}
}

// inUse lists what is attached.
func inUse(t *testing.T) string {
	t.Helper()
	_, ports, _ := strings.Cut(installed(t, "port", "-a"), "\n")
	return ports
}

// diagnose returns what the doctor finds, and whether the exit status says that
// all is well.
func diagnose(t *testing.T, args ...string) (answer string, well bool) {
	t.Helper()
	var out strings.Builder
	cmd := newRoot()
	cmd.SetArgs(append([]string{"doctor", "--json"}, args...))
	cmd.SetOut(&out)
	err := cmd.ExecuteContext(t.Context())
	if status, ok := errors.AsType[exitStatus](err); err != nil && (!ok || status != exitFailed) {
		t.Fatalf("usbns doctor %v: %v", args, err)
	}
	return out.String(), err == nil
}

// checkPrivate fails the test if the doctor, whose answer it is, finds something
// that is not private, but for the lack of a user namespace.
func checkPrivate(t *testing.T, answer string, userNS bool) {
	t.Helper()
	var checks []doctor.Check
	if err := json.Unmarshal([]byte(answer), &checks); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	for _, c := range checks {
		want := doctor.OK
		if c.Name == "user namespace" && !userNS {
			want = doctor.Partly
		}
		if c.State != want {
			t.Errorf("the doctor finds %+v, want %s", c, want)
		}
	}
}

// checkProof fails the test if the doctor has got through to a neighbour, or is
// blind.
func checkProof(t *testing.T, answer string) {
	t.Helper()
	var proof doctor.Proof
	if err := json.Unmarshal([]byte(answer), &proof); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	if !proof.Holds() || len(proof.Attempts) < len(escape.Cases()) {
		t.Errorf("the doctor proves %+v", proof)
	}
}
