//go:build linux

package worker

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// nobody is the user and group that own nothing, by the kernel's own default
// (overflowuid).
const nobody = 65534

// namespaces are what a worker gets of its own when root starts it.
func namespaces() uintptr {
	if os.Geteuid() != 0 {
		return 0
	}
	return unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
}

// confine gives up all this process does not need. Its connections and the
// socket it listens on are open.
func confine() error {
	for limit, n := range map[int]uint64{
		unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: 0, unix.RLIMIT_MSGQUEUE: 0,
		unix.RLIMIT_NOFILE: 4*maxDevices + 32,
	} {
		if err := unix.Setrlimit(limit, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("set limit %d: %w", limit, err)
		}
	}
	if os.Geteuid() == 0 {
		if err := emptyRoot(); err != nil {
			return fmt.Errorf("make an empty root: %w (it needs CAP_SYS_ADMIN)", err)
		}
		if err := dropRoot(); err != nil {
			return fmt.Errorf("become user %d: %w", nobody, err)
		}
	}
	return filterSystemCalls()
}

// emptyRoot makes an empty, read-only file system the only one there is, in the
// mount namespace this process was born in. /proc is there on every Linux.
func emptyRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("none", "/proc", "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555"); err != nil {
		return err
	}
	if err := unix.Chdir("/proc"); err != nil {
		return err
	}
	// The old root lies on top of the new one then, and goes with its mounts.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// dropRoot is of package syscall, which does it for all threads.
func dropRoot() error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(nobody, nobody, nobody); err != nil {
		return err
	}
	return syscall.Setresuid(nobody, nobody, nobody)
}

// filterSystemCalls leaves all threads, now and later, only what allowed lists.
func filterSystemCalls() error {
	if auditArch == 0 {
		return fmt.Errorf("no system call filter for %s", runtime.GOARCH)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The other threads get this with the filter.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := loadFilter(filter()); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}
