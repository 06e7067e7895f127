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
	"strings"
	"syscall"

	"github.com/usbns/usbns/internal/debpkg"
)

// A machine is a QEMU guest that runs once.
type machine struct {
	tools     string   // a tree
	roots     []string // trees of the guest's root
	kernel    string
	initramfs *os.File
	memory    string
	extra     []string // QEMU arguments
	console   bool     // show it
	results   []string // what the guest may write here
	stdout    io.Writer
	stderr    io.Writer
}

// QEMU's file descriptors. The guest's console and its wire are pipes.
const (
	initramfsFD = 3 + iota
	consoleFD
	wireFD
)

func (m *machine) command(ctx context.Context) *exec.Cmd {
	// An oops is a panic, and a panic a reboot, which ends QEMU.
	// no_timer_check: where the host is busy the emulated timer may not tick within
	// the ten periods that the kernel waits for it, and it panics.
	kernelArgs := "console=ttyS0 panic=-1 oops=panic mitigations=off no_timer_check"
	if !m.console {
		kernelArgs += " loglevel=5" // warnings and what is worse
	}
	// With a thread for each CPU one of them can run into the breakpoint of a
	// code patch that the other has just completed, and the kernel oopses (int3
	// in sched_clock_cpu while it boots). In turn they cannot, and two guests
	// keep two cores busy all the same.
	args := []string{
		"-L", filepath.Join(m.tools, "usr/share/qemu"), "-L", filepath.Join(m.tools, "usr/share/seabios"),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none",
		"-machine", "pc", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", m.memory,
		"-kernel", m.kernel, "-initrd", fmt.Sprintf("/dev/fd/%d", initramfsFD), "-append", kernelArgs,
		"-chardev", fmt.Sprintf("file,id=console,path=/dev/fd/%d", consoleFD), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("file,id=wire,path=/dev/fd/%d", wireFD),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=wire,name=" + wireName,
	}
	for i, root := range m.roots {
		tag := rootTag(i)
		args = append(args,
			"-fsdev", "local,id="+tag+",security_model=none,readonly=on,path="+strings.ReplaceAll(root, ",", ",,"),
			"-device", "virtio-9p-pci,fsdev="+tag+",mount_tag="+tag)
	}
	cmd := debpkg.Command(ctx, m.tools, "usr/bin/qemu-system-x86_64", append(args, m.extra...)...)
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(m.tools, "usr/lib/x86_64-linux-gnu/qemu"))
	// A group of its own, so that Ctrl-C ends vmexec first, and an end with
	// vmexec, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run boots the guest and returns when QEMU has ended.
func (m *machine) run(ctx context.Context) error {
	var qemuSaid bytes.Buffer
	cmd := m.command(ctx)
	cmd.Stderr = &qemuSaid
	consoleRead, consoleWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer consoleRead.Close()
	defer consoleWrite.Close()
	wireRead, wireWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wireRead.Close()
	defer wireWrite.Close()
	cmd.ExtraFiles = []*os.File{m.initramfs, consoleWrite, wireWrite}
	if err := cmd.Start(); err != nil {
		return err
	}
	consoleWrite.Close()
	wireWrite.Close()

	var console tail
	var consoleTo io.Writer = &console
	if m.console {
		consoleTo = io.MultiWriter(&console, m.stderr)
	}
	consoleDone := make(chan struct{})
	go func() {
		defer close(consoleDone)
		io.Copy(consoleTo, consoleRead)
	}()
	var results bytes.Buffer
	status, err := readFrames(wireRead, m.stdout, &results)
	cutOff := err == io.EOF || err == io.ErrUnexpectedEOF
	if !cutOff {
		cmd.Process.Kill() // the guest has done its part, or cannot
	}
	cmd.Wait() // its error says less than what follows
	<-consoleDone

	switch {
	case err == nil && status == 0:
		return untar(&results, m.results)
	case err == nil:
		return errors.Join(untar(&results, m.results), exitError(status))
	case ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("%w; its console:\n%s", context.Cause(ctx), &console)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !cutOff:
		return fmt.Errorf("wire from the guest: %w", err)
	default:
		return fmt.Errorf("the guest died (QEMU: %v); its console:\n%s%s", cmd.ProcessState, &qemuSaid, &console)
	}
}

// tail is a writer that keeps the last of what is written.
type tail struct{ buf []byte }

const tailSize = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if excess := len(t.buf) - tailSize; excess > 0 {
		t.buf = append(t.buf[:0], t.buf[excess:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	return strings.TrimSpace(strings.ReplaceAll(string(t.buf), "\r", ""))
}
