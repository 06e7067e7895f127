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
	"sync"
	"syscall"

	"github.com/usbns/usbns/internal/debpkg"
)

// A machine is a QEMU guest that runs once.
type machine struct {
	tools, root       string // trees
	kernel, initramfs string
	memory            string
	extra             []string // QEMU arguments
	console           bool
	results           []string
}

// The guest's wires are pipes that QEMU opens by these numbers.
const (
	consoleFD = 3 + iota
	outFD
	resultsFD
)

func (m *machine) command(ctx context.Context) *exec.Cmd {
	kernelArgs := "console=ttyS0 panic=-1 oops=panic mitigations=off"
	if !m.console {
		kernelArgs += " loglevel=4"
	}
	args := []string{
		"-L", filepath.Join(m.tools, "usr/share/qemu"), "-L", filepath.Join(m.tools, "usr/share/seabios"),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none",
		"-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", m.memory,
		"-kernel", m.kernel, "-initrd", m.initramfs, "-append", kernelArgs,
		"-chardev", fmt.Sprintf("file,id=console,path=/dev/fd/%d", consoleFD), "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("file,id=out,path=/dev/fd/%d", outFD), "-device", "virtserialport,chardev=out,name=" + outPort,
		"-chardev", fmt.Sprintf("file,id=results,path=/dev/fd/%d", resultsFD), "-device", "virtserialport,chardev=results,name=" + resultsPort,
		"-fsdev", "local,id=root,security_model=none,readonly=on,path=" + m.root, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=1", exitIOPort),
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
	var stderr bytes.Buffer
	var console tail
	var consoleTo io.Writer = &console
	if m.console {
		consoleTo = io.MultiWriter(&console, os.Stderr)
	}
	cmd := m.command(ctx)
	cmd.Stderr = &stderr

	var wires sync.WaitGroup
	var resultsErr error
	defer wires.Wait()
	for _, read := range []func(io.Reader){
		consoleFD - 3: func(r io.Reader) { io.Copy(consoleTo, r) },
		outFD - 3:     func(r io.Reader) { io.Copy(os.Stdout, r) },
		resultsFD - 3: func(r io.Reader) { resultsErr = untar(r, m.results) },
	} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
		wires.Go(func() {
			defer r.Close()
			read(r)
			io.Copy(io.Discard, r) // QEMU must not wait for a reader that gave up
		})
	}
	err := cmd.Start()
	for _, w := range cmd.ExtraFiles {
		w.Close()
	}
	if err != nil {
		return err
	}
	err = cmd.Wait()
	wires.Wait()

	if ctx.Err() != nil {
		return fmt.Errorf("%w\n%s", context.Cause(ctx), console.String())
	}
	status, ok := guestStatus(cmd.ProcessState.ExitCode())
	switch {
	case ok && status == 0:
		return resultsErr
	case ok && status == exitSetup:
		return fmt.Errorf("the guest could not run the test\n%s", console.String())
	case ok:
		return errors.Join(resultsErr, exitError(status))
	case stderr.Len() > 0:
		return fmt.Errorf("QEMU: %s", strings.TrimSpace(stderr.String()))
	default:
		return fmt.Errorf("the guest died before the test had ended (QEMU: %v); its console:\n%s", cmd.ProcessState, console.String())
	}
}

// guestStatus undoes what isa-debug-exit does to the guest's exit status.
func guestStatus(code int) (status int, ok bool) {
	status = code>>1 - exitBase
	return status, code&1 == 1 && 0 <= status && status <= exitSetup
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
