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
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/runtimestest"
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

// linkEscape installs the attacker.
func linkEscape(t *testing.T) {
	t.Helper()
	if err := os.Symlink("usbns", "/usr/bin/usbns-escape"); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
}

// installDaemon runs a daemon with two controllers, own and hers, and an exporter
// that has a signature pad for each, 1-1 and 1-2.
func installDaemon(t *testing.T) {
	t.Helper()
	linkEscape(t)
	daemon := exec.Command("/usr/bin/usbns", "daemon")
	daemon.Stderr = t.Output()
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(daemon.Process.Signal(os.Interrupt), daemon.Wait()); err != nil {
			t.Errorf("daemon: %v", err)
		}
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // that it is ready
		t.Fatal(err)
	}

	exporter := &usbip.Exporter{}
	for busid, serial := range map[string]string{"1-1": "OWN-4711", "1-2": "HERS-0815"} {
		pad, err := emulate.Open("signpad", emulate.Options{Serial: serial})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pad.Close() })
		if err := exporter.Add(busid, pad); err != nil {
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
	for _, name := range []string{"own", "hers"} {
		owner := fmt.Sprintf("%d:%d", runtimestest.SubID, runtimestest.SubID)
		installed(t, "controller", "create", name, "--driver", "kernel", "--owner", owner)
		t.Cleanup(func() {
			if out, err := exec.Command("/usr/bin/usbns", "controller", "delete", name).CombinedOutput(); err != nil {
				t.Errorf("delete %s: %v %s", name, err, out)
			}
		})
	}
}

// startWithController starts a container by the lines that usbns config prints.
func startWithController(t *testing.T, r runtimestest.Runtime, controller string) *runtimestest.Container {
	t.Helper()
	cfg := runtimestest.Config{Name: controller, UserNS: true}
	if r == runtimestest.LXC {
		cfg.LXC = installed(t, "config", "lxc", "-i", controller)
	} else {
		cfg.OCI = installed(t, "config", "oci", "-i", controller)
	}
	return runtimestest.Start(t, r, cfg)
}

// attachTo attaches a device to a controller and describes it once it has its
// nodes.
func attachTo(t *testing.T, controller, busid, serial string) escape.Target {
	t.Helper()
	installed(t, "attach", "-r", "127.0.0.1", "-b", busid, "-i", controller)
	return describe(t, serial)
}

// describe waits until a device has its nodes.
func describe(t *testing.T, serial string) (target escape.Target) {
	t.Helper()
	waitUntil(t, serial+" has its nodes", func() bool {
		files, err := filepath.Glob("/sys/bus/usb/devices/*/serial")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if text, _ := os.ReadFile(file); strings.TrimSpace(string(text)) == serial {
				target, err = escape.Describe(filepath.Dir(file))
				return err == nil && len(target.Nodes) >= 2
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

func TestGuestContainersOfRuntimes(t *testing.T) {
	installDaemon(t)
	for _, r := range runtimestest.All {
		t.Run(string(r), func(t *testing.T) {
			runtimestest.CheckLeaks(t)
			own, hers := startWithController(t, r, "own"), startWithController(t, r, "hers")
			known := escape.Known{Own: attachTo(t, "own", "1-1", "OWN-4711"), Neighbour: attachTo(t, "hers", "1-2", "HERS-0815")}
			for c, node := range map[*runtimestest.Container]escape.Node{own: known.Own.Nodes[0], hers: known.Neighbour.Nodes[0]} {
				out, err := c.Run("sh", "-c", "lsusb; ls /dev/hidraw*")
				if err != nil || strings.Count(out, "\n") != 2 || !strings.Contains(out, "usbns") || !strings.Contains(out, node.Name) {
					t.Errorf("%s sees %v\n%s", c.Name, err, out)
				}
			}
			if r == runtimestest.Crun { // all would take a minute
				tryToEscape(t, own, known)
			}
			own.Stop()
			hers.Stop()
			waitUntil(t, "nothing is attached", func() bool { return inUse(t) == "" })
		})
	}
}

// tryToEscape runs the attacker in a container.
func tryToEscape(t *testing.T, c *runtimestest.Container, known escape.Known) {
	t.Helper()
	text, err := json.Marshal(known)
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Command(t.Context(), "/usr/bin/usbns-escape")
	cmd.Stdin = bytes.NewReader(text)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, &complaint)
	}
	checkResults(t, out.Bytes())
}

// checkResults fails the test if the neighbour's device was reached, or the own
// one was not.
func checkResults(t *testing.T, out []byte) {
	t.Helper()
	must := map[string]bool{}
	for _, c := range escape.Cases() {
		must[c.Name] = c.Own
	}
	n := 0
	for line := range bytes.Lines(out) {
		var r escape.Result
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		n++
		switch {
		case r.Reached && !r.Own:
			t.Errorf("%s reaches the neighbour: %s", r.Case, r.Text)
		case !r.Reached && r.Own && must[r.Case]:
			t.Errorf("%s does not reach the own device: %s", r.Case, r.Text)
		}
	}
	if n != 2*len(must) {
		t.Errorf("%d results of %d cases", n, len(must))
	}
}
