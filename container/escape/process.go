//go:build linux

package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var processCases = []Case{
	{
		Name: "process-list", try: (*attempt).processList,
		Why: "a process that is seen tells what its user does",
	},
	processCase("process-root", "the files of a process are reached through its root",
		func(a *attempt, pid int) (string, error) {
			return a.serialAt(fmt.Sprintf("/proc/%d/root%s", pid, a.target().Path))
		}),
	processCase("process-setns", "whoever joins a process's namespaces is where it is",
		(*attempt).joinNamespaces),
	processCase("process-fd", "pidfd_getfd takes an open node or socket out of a process",
		func(_ *attempt, pid int) (string, error) {
			return withPidfd(pid, func(pidfd int) (string, error) {
				fd, err := unix.PidfdGetfd(pidfd, 0, 0)
				if err != nil {
					return "", fmt.Errorf("pidfd_getfd: %w", err)
				}
				unix.Close(fd)
				return fmt.Sprintf("took descriptor 0 of process %d", pid), nil
			})
		}),
	processCase("process-trace", "a tracer does whatever its tracee may",
		func(_ *attempt, pid int) (string, error) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if err := unix.PtraceSeize(pid); err != nil {
				return "", fmt.Errorf("ptrace: %w", err)
			}
			err := unix.PtraceInterrupt(pid)
			if err == nil {
				_, err = unix.Wait4(pid, nil, unix.WALL, nil)
			}
			return fmt.Sprintf("traced process %d", pid), errors.Join(err, unix.PtraceDetach(pid))
		}),
	processCase("process-memory", "keys and reports are in a process's memory",
		func(_ *attempt, pid int) (string, error) {
			return openFirst(os.O_RDONLY, []string{fmt.Sprintf("/proc/%d/mem", pid)})
		}),
	processCase("process-compare", "kcmp tells whether two processes share a file",
		func(_ *attempt, pid int) (string, error) {
			const kcmpFile = 0 // KCMP_FILE, include/uapi/linux/kcmp.h
			_, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), kcmpFile, 0, 0, 0)
			if errno != 0 {
				return "", fmt.Errorf("kcmp: %w", errno)
			}
			return fmt.Sprintf("compared a descriptor with one of process %d", pid), nil
		}),
	processCase("process-signal", "a worker that is killed takes its devices along",
		func(_ *attempt, pid int) (string, error) {
			if err := unix.Kill(pid, 0); err != nil {
				return "", fmt.Errorf("kill: %w", err)
			}
			return fmt.Sprintf("can signal process %d", pid), nil
		}),
}

// processCase is tried on each process of the target's user that is to be seen.
// Numbers alone are not tried: inside they are others' numbers.
func processCase(name, why string, try func(a *attempt, pid int) (string, error)) Case {
	return Case{Name: name, Why: why, try: func(a *attempt) (string, error) {
		pids, err := a.marked()
		if err != nil {
			return "", err
		}
		var errs error
		for _, pid := range pids {
			evidence, err := try(a, pid)
			if err == nil {
				return evidence, nil
			}
			errs = errors.Join(errs, err)
		}
		return "", brief(errs)
	}}
}

// marked gives the processes of the target's user.
func (a *attempt) marked() ([]int, error) {
	marks := a.target().Marks
	if len(marks) == 0 {
		return nil, errors.New("no process is known")
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !slices.ContainsFunc(marks, func(mark string) bool { return strings.Contains(string(text), mark) }) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("not among %d processes", len(files))
	}
	return pids, nil
}

func (a *attempt) processList() (string, error) {
	pids, err := a.marked()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("see process %d", pids[0]), nil
}

func withPidfd(pid int, f func(pidfd int) (string, error)) (string, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return "", fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	return f(pidfd)
}

// joinNamespaces takes a thread of its own into the process's namespaces; the
// thread ends there.
func (a *attempt) joinNamespaces(pid int) (evidence string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		evidence, err = withPidfd(pid, func(pidfd int) (string, error) {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return "", err
			}
			if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
				return "", fmt.Errorf("setns: %w", err)
			}
			return a.serialAt(a.target().Path)
		})
	}()
	<-done
	return evidence, err
}
