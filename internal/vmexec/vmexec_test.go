package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/debpkg"
)

var scratch string // a directory for the run of all tests

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "vmexec-test-"); err != nil {
		panic(err)
	}
	status := m.Run()
	os.RemoveAll(scratch)
	os.Exit(status)
}

// build makes vmexec and the tests of testdata/behaviour in scratch.
var build = sync.OnceValue(func() error {
	for _, args := range [][]string{
		{"build", "-o", filepath.Join(scratch, "vmexec"), "."},
		{"test", "-c", "-o", filepath.Join(scratch, "behaviour.test"), "./testdata/behaviour"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return nil
})

// requireGuest is for a test that boots a guest. It fetches nothing.
func requireGuest(t *testing.T) {
	t.Helper()
	cache, err := debpkg.Open(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range trees() {
		if cache.Has(tree) {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("Debian packages for %s are not fetched: run vmexec -fetch", tree.Name)
		}
		t.Skipf("Debian packages for %s are not fetched: run vmexec -fetch", tree.Name)
	}
	if err := build(); err != nil {
		t.Fatal(err)
	}
}

// boot runs tests of testdata/behaviour in a guest.
func boot(t *testing.T, ctx context.Context, h host, args ...string) (output string, err error) {
	t.Helper()
	requireGuest(t)
	runtime.LockOSThread() // QEMU dies with the thread
	defer runtime.UnlockOSThread()
	var out bytes.Buffer
	if h.dir == "" {
		h.dir = absolute(t, "testdata/behaviour")
	}
	if h.stdout == nil {
		h.stdout = &out
	}
	h.init, h.stderr = filepath.Join(scratch, "vmexec"), io.Discard
	err = h.run(ctx, filepath.Join(scratch, "behaviour.test"), args)
	return out.String(), err
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		run     string
		args    []string
		kernel  string
		status  exitError
		err     string // if it is no exitError
		outputs []string
	}{
		{run: "TestFail", status: 1, outputs: []string{"behaviour_test.go:", "as it should", "--- FAIL: TestFail", "the kernel's log ends:\n", "sysrq: Show Blocked State"}},
		{run: "TestPanic", status: 2, outputs: []string{"panic: as it should", "goroutine "}},
		{run: "TestHang", status: 2, args: []string{"-test.timeout=1s"}, outputs: []string{"panic: test timed out after 1s"}},
		{run: "TestKilled", status: 1, outputs: []string{"vmexec: the test was killed: killed"}},
		{run: "TestOrphan", outputs: []string{"PASS"}},
		{run: "TestKernelPanic", kernel: "6.12", err: "Kernel panic - not syncing: sysrq triggered crash"},
		{run: "TestKernelPanic", kernel: "6.1", err: "Kernel panic - not syncing: sysrq triggered crash"},
	} {
		kernel := tt.kernel
		if kernel == "" {
			kernel = "6.12"
		}
		t.Run(tt.run+"/"+kernel, func(t *testing.T) {
			t.Parallel()
			out, err := boot(t, t.Context(), host{kernel: kernel, grace: time.Minute}, append(tt.args, "-test.run=^"+tt.run+"$")...)
			var status exitError
			switch {
			case tt.err != "":
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v\nwant %q", err, tt.err)
				}
			case err != nil && !errors.As(err, &status), status != tt.status:
				t.Errorf("error %v, want status %d", err, tt.status)
			}
			for _, want := range tt.outputs {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in the output:\n%s", want, out)
				}
			}
		})
	}
}

func TestSurroundings(t *testing.T) {
	t.Setenv("VMEXEC_TEST_VARIABLE", "value")
	t.Setenv("VMEXEC_TEST_SECRET", "secret")
	for kernel := range kernelTrees {
		out, err := boot(t, t.Context(), host{kernel: kernel}, "-test.run=^TestSurroundings$")
		if err != nil || !strings.Contains(out, "kernel "+kernel+".") {
			t.Errorf("%s: %v\n%s", kernel, err, out)
		}
	}
}

func TestOutputIsWhole(t *testing.T) {
	t.Parallel()
	out, err := boot(t, t.Context(), host{kernel: "6.12"}, "-test.run=^TestMuchOutput$")
	if want := strings.Repeat("0123456789abcde\n", 1<<16) + "PASS\n"; err != nil || out != want {
		t.Errorf("%v, %d bytes of output, want %d", err, len(out), len(want))
	}
}

func TestResultsComeBack(t *testing.T) {
	t.Parallel()
	profile := filepath.Join(t.TempDir(), "mem.out")
	log := filepath.Join(t.TempDir(), "testlog.txt")
	_, err := boot(t, t.Context(), host{kernel: "6.12"}, "-test.run=^TestReadFile$", "-test.memprofile="+profile, "-test.testlogfile="+log)
	if err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(profile); err != nil || info.Size() == 0 {
		t.Errorf("profile: %v, %v", info, err)
	}
	if text, err := os.ReadFile(log); err != nil || !bytes.Contains(text, []byte("\nopen testdata/greeting\n")) {
		t.Errorf("log: %q, %v", text, err)
	}
}

func TestGuestThatDoesNotEndIsKilled(t *testing.T) {
	t.Parallel()
	_, err := boot(t, t.Context(), host{kernel: "6.12", grace: time.Second}, "-test.run=^TestStop$", "-test.timeout=1s")
	if err == nil || !strings.Contains(err.Error(), "it had not ended 1s after the test's timeout of 1s") {
		t.Errorf("error %v", err)
	}
}

func TestCancelEndsTheGuest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	started := writerFunc(func(p []byte) (int, error) { cancel(interrupted); return len(p), nil })
	_, err := boot(t, ctx, host{kernel: "6.12", stdout: started}, "-test.run=^TestStop$")
	if !errors.Is(err, interrupted) {
		t.Errorf("error %v, want %v", err, interrupted)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestKilledVMExecLeavesNoQEMU(t *testing.T) {
	t.Parallel()
	requireGuest(t)
	cmd := exec.Command(filepath.Join(scratch, "vmexec"), filepath.Join(scratch, "behaviour.test"), "-test.run=^TestStop$")
	cmd.Dir = "testdata/behaviour"
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, readErr := stdout.Read(make([]byte, 1)) // the test runs
	children, childErr := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
	var qemu int
	var numErr error
	pidfd := -1
	if childErr == nil {
		if qemu, numErr = strconv.Atoi(strings.TrimSpace(string(children))); numErr == nil {
			pidfd, numErr = unix.PidfdOpen(qemu, 0)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := errors.Join(readErr, childErr, numErr); err != nil {
		t.Fatalf("no child of vmexec: %v", err)
	}
	defer unix.Close(pidfd)
	for {
		// No event but the end of the process, which is what the test is about.
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
		if err == nil {
			return
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

func TestBadDirectiveForQEMU(t *testing.T) {
	t.Parallel()
	dir := writeTest(t, "//vmexec:qemu -device nonesuch")
	_, err := boot(t, t.Context(), host{kernel: "6.12", dir: dir})
	if err == nil || !strings.Contains(err.Error(), "'nonesuch' is not a valid device model name") {
		t.Errorf("error %v", err)
	}
}

func TestUnknownModule(t *testing.T) {
	t.Parallel()
	dir := writeTest(t, "//vmexec:modules nonesuch")
	_, err := boot(t, t.Context(), host{kernel: "6.12", dir: dir})
	if err == nil || !strings.Contains(err.Error(), "no module nonesuch") {
		t.Errorf("error %v", err)
	}
}

func TestUnknownKernel(t *testing.T) {
	t.Parallel()
	_, err := boot(t, t.Context(), host{kernel: "2.6"})
	if err == nil || !strings.Contains(err.Error(), "no kernel 2.6") {
		t.Errorf("error %v", err)
	}
}

func TestDynamicProgramIsRefused(t *testing.T) {
	requireGuest(t)
	h := host{kernel: "6.12", dir: t.TempDir(), init: "/bin/sh", stderr: io.Discard}
	err := h.run(t.Context(), "/bin/sh", nil)
	if err == nil || !strings.Contains(err.Error(), "/bin/sh is dynamically linked") {
		t.Errorf("error %v", err)
	}
}

// writeTest makes a package directory whose test file holds a directive.
func writeTest(t *testing.T, directive string) string {
	t.Helper()
	dir := t.TempDir()
	text := directive + "\n\npackage p\n\nimport \"testing\"\n\nfunc TestPass(t *testing.T) {}\n"
	if err := os.WriteFile(filepath.Join(dir, "p_test.go"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
