//go:build linux

package escape

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// ProcessName is the name by which the program becomes [Main].
const ProcessName = "usbns-escape"

// inChild tries a case in namespaces of its own.
func (a *attempt) inChild(c Case, r Result) Result {
	known, err := json.Marshal(a.Known)
	if err != nil {
		r.Text = err.Error()
		return r
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", c.Name, whose(a.own))
	cmd.Args[0] = ProcessName
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(known), &out, &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.unshare, Pdeathsig: syscall.SIGKILL}
	if c.unshare&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	// The child dies with the thread that starts it, which other attempts are not
	// to have and to end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		r.Text = fmt.Sprintf("no namespaces: %v %s", err, bytes.TrimSpace(complaint.Bytes()))
		return r
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		r.Text = err.Error()
	}
	return r
}

func whose(own bool) string {
	if own {
		return "own"
	}
	return "neighbour"
}

// child is what the process of inChild does.
func child(known Known, name string, own bool, out io.Writer) error {
	all := Cases()
	i := slices.IndexFunc(all, func(c Case) bool { return c.Name == name })
	if i < 0 {
		return fmt.Errorf("no case %s", name)
	}
	c := all[i]
	a := &attempt{Known: known, own: own, root: "/"}
	if c.unshare&unix.CLONE_NEWNS != 0 {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("keep mounts from spreading: %w", err)
		}
		var err error
		if a.dir, err = scratchMount(); err != nil {
			return err
		}
	}
	c.unshare = 0
	return json.NewEncoder(out).Encode(a.result(c))
}

// scratchMount gives a directory to mount in that goes with the namespace.
func scratchMount() (string, error) {
	var errs error
	for _, dir := range []string{"/tmp", "/mnt", "/media", "/run", "/dev/shm"} {
		err := unix.Mount("escape", dir, "tmpfs", 0, "mode=755")
		if err == nil {
			return dir, nil
		}
		errs = errors.Join(errs, fmt.Errorf("tmpfs on %s: %w", dir, err))
	}
	return "", errs
}
