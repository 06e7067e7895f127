//go:build linux

package join

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
)

// Names under which the test binary is one of the programs of a container.
const (
	sleeperName = "join-sleeper"
	tellerName  = "join-teller"
	failerName  = "join-failer"
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case sleeperName:
		_, _ = io.Copy(io.Discard, os.Stdin)
		syscall.Exit(0) // at once: the race detector would wait for a second
	case tellerName:
		tell()
		syscall.Exit(0)
	case failerName:
		syscall.Exit(3)
	default:
		os.Exit(m.Run())
	}
}

var namespaces = []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}

// tell says where the process is, what it may, and what it has.
func tell() {
	for _, kind := range namespaces {
		name, err := os.Readlink("/proc/self/ns/" + kind)
		fmt.Println(name, err)
	}
	sid, err := unix.Getsid(0)
	fmt.Println("session of its own", sid == os.Getpid(), err)
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		name, _, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Uid", "Gid", "SigBlk", "CapPrm", "CapEff", "CapBnd"}, name) {
			fmt.Print(line)
		}
	}
	_, _ = io.Copy(os.Stdout, os.Stdin)
}

// notLeak fails the test if it leaves goroutines or descriptors.
func notLeak(t *testing.T) {
	t.Helper()
	must.NotLeak(t)
	before := must.Descriptors(t)
	t.Cleanup(func() {
		if after := must.Descriptors(t); len(after) > len(before) {
			t.Errorf("descriptors before: %v, after: %v", before, after)
		}
	})
}

// startContainer starts a process in a cgroup and namespaces of its own.
func startContainer(t *testing.T, userNS bool) (pid int, cgroup string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a cgroup file system")
	}
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Skipf("needs cgroups of version 2: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cgroup, err := os.MkdirTemp(root, "join")
	if err != nil {
		t.Skipf("needs cgroups of version 2: %v", err)
	}
	t.Cleanup(func() {
		for err := os.Remove(cgroup); errors.Is(err, unix.EBUSY); err = os.Remove(cgroup) {
			time.Sleep(time.Millisecond) // those that were in it are still leaving
		}
	})
	group, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = sleeperName
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  shared | unix.CLONE_NEWCGROUP,
		UseCgroupFD: true, CgroupFD: int(group.Fd()),
	}
	if userNS {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}}
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs namespaces: %v", err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid, cgroup
}

// run runs a program in the container and returns what it prints.
func run(t *testing.T, cfg Config, name string) (string, error) {
	t.Helper()
	var streams [6]*os.File
	for i := 0; i < len(streams); i += 2 {
		var err error
		if streams[i], streams[i+1], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
	}
	in, out := streams[1], streams[2]
	cfg.Argv, cfg.Stdin, cfg.Stdout, cfg.Stderr = []string{name}, streams[0], streams[3], streams[5]
	if _, err := in.WriteString("end\n"); err != nil {
		t.Fatal(err)
	}
	in.Close()
	said := make(chan string)
	go func() {
		text, err := io.ReadAll(out)
		said <- fmt.Sprint(string(text), err)
	}()
	err := Run(t.Context(), cfg)
	streams[3].Close()
	text := <-said
	for _, f := range streams {
		f.Close()
	}
	return text, err
}

func TestRun(t *testing.T) {
	for _, userNS := range []bool{false, true} {
		t.Run(fmt.Sprintf("userns=%v", userNS), func(t *testing.T) {
			pid, cgroup := startContainer(t, userNS)
			notLeak(t)
			cfg := Config{PID: pid, Cgroup: cgroup, Capabilities: 1<<unix.CAP_CHOWN | 1<<unix.CAP_SYS_ADMIN}
			var want strings.Builder
			for _, kind := range namespaces {
				name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
				fmt.Fprintln(&want, name, err)
			}
			want.WriteString("session of its own true <nil>\n")
			want.WriteString("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n") // as they are inside
			want.WriteString("SigBlk:\t0000000000000000\n")
			for _, set := range []string{"Prm", "Eff", "Bnd"} {
				fmt.Fprintf(&want, "Cap%s:\t0000000000200001\n", set)
			}
			want.WriteString("end\n<nil>")
			got, err := run(t, cfg, tellerName)
			if diff := cmp.Diff(want.String(), got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
			if _, err := run(t, cfg, failerName); err == nil || !strings.Contains(err.Error(), "exit status 3") {
				t.Errorf("a program that fails: %v", err)
			}
		})
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	pid, cgroup := startContainer(t, true)
	notLeak(t)
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer hold.Close()
	ctx, cancel := context.WithCancel(t.Context())
	said, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	go func() {
		_, _ = said.Read(make([]byte, 1)) // it runs
		cancel()
	}()
	err = Run(ctx, Config{PID: pid, Cgroup: cgroup, Argv: []string{tellerName}, Stdin: in, Stdout: out, Stderr: out})
	out.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ends with %v", err)
	}
}

// What the child cannot do, the parent tells.
func TestRunTellsWhatFails(t *testing.T) {
	pid, cgroup := startContainer(t, false)
	notLeak(t)
	for want, cfg := range map[string]Config{
		"pidfd_open":        {PID: 1 << 22, Cgroup: cgroup}, // above every pid_max
		"no such file":      {PID: pid, Cgroup: cgroup + "-not"},
		"have its streams":  {PID: pid, Cgroup: cgroup, Argv: []string{tellerName}},
		"clone3: bad file ": {PID: pid, Cgroup: "/proc", Argv: []string{tellerName}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr},
	} {
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
