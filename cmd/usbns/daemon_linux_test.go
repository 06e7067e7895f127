package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/usbns/usbns/daemon"
)

// startDaemon runs "usbns daemon" in a directory of its own until the test ends.
func startDaemon(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "run")
	stdout, out := io.Pipe()
	cmd := newRoot()
	cmd.SetArgs([]string{"daemon", "--run", dir})
	cmd.SetOut(out)
	cmd.SetErr(t.Output())
	ctx, interrupt := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		out.CloseWithError(io.EOF)
		ended <- err
	}()
	t.Cleanup(func() {
		interrupt()
		if err := <-ended; err != nil {
			t.Errorf("an interrupted daemon ends with %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.sock")); left != nil {
			t.Errorf("an interrupted daemon leaves %v", left)
		}
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready in "+dir+"\n" {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return dir
}

// fail runs a command that must fail, and returns its error.
func fail(t *testing.T, args ...string) error {
	t.Helper()
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(io.Discard)
	cmd.SetErr(t.Output())
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		t.Errorf("usbns %v succeeds", args)
	}
	return err
}

func TestEachControllerHasItsOwnPorts(t *testing.T) {
	dir := startDaemon(t)
	e := startExport(t, anyPort, "scanner", "signpad")
	defer e.end()
	for _, name := range []string{"alice", "bob"} {
		execute(t, "controller", "create", "--run", dir, "--ports", "1", name)
	}
	for name, busid := range map[string]string{"alice": "1-1", "bob": "1-2"} {
		if got := execute(t, "attach", "--run", dir, "-r", e.addr, "-b", busid, "-i", name); got != "port 0\n" {
			t.Errorf("attach for %s prints %q", name, got)
		}
	}
	var ports []attached
	if err := json.Unmarshal([]byte(execute(t, "port", "--run", dir, "-i", "bob", "--json")), &ports); err != nil {
		t.Fatal(err)
	}
	if len(ports) != 1 || ports[0].Controller != 1 || ports[0].Product != 0x0003 || ports[0].BusID != "1-1" {
		t.Errorf("bob sees %+v", ports)
	}
	if text := execute(t, "port", "--run", dir, "-a"); strings.Count(text, "Port in Use") != 2 {
		t.Errorf("all ports are\n%s", text)
	}
	if err := fail(t, "detach", "--run", dir, "-i", "bob", "-p", "1"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("detach of a free port: %v", err)
	}
	execute(t, "detach", "--run", dir, "-i", "bob", "-p", "0")
	if text := execute(t, "port", "--run", dir); strings.Count(text, "Port in Use") != 1 {
		t.Errorf("without -i it is controller 0, alice's:\n%s", text)
	}
	execute(t, "controller", "delete", "--run", dir, "alice", "1")
	if text := execute(t, "controller", "list", "--run", dir, "--json"); text != "[]\n" {
		t.Errorf("left are %s", text)
	}
}

func TestRunDirectoryIsOneDaemonsAlone(t *testing.T) {
	dir := startDaemon(t)
	if err := fail(t, "daemon", "--run", dir); !errors.Is(err, daemon.ErrRunning) {
		t.Errorf("a second daemon: %v, want %v", err, daemon.ErrRunning)
	}
	for _, name := range []string{"control.sock", "attach.sock"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want it to be its owner's alone", name, info.Mode(), err)
		}
	}
}

func TestSocketsOfADeadDaemonAreReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "control.sock")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemon.Run(ctx, dir, slog.New(slog.DiscardHandler), func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	interrupt()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestOwnerIsTwoNumbers(t *testing.T) {
	for _, bad := range []string{"", "1000", "alice:users", "1:2:3", "-1:0", "4294967296:0", "4294967295:0", "0:4294967295"} {
		if _, _, err := parseOwner(bad); err == nil {
			t.Errorf("owner %q is taken", bad)
		}
	}
	if uid, gid, err := parseOwner("1000:100"); uid != 1000 || gid != 100 || err != nil {
		t.Errorf("1000:100 is %d:%d, %v", uid, gid, err)
	}
}
