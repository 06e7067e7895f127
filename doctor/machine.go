//go:build linux

package doctor

import (
	"errors"
	"os"
	"runtime"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/guard"
)

// machine is the kernel of this machine.
type machine struct{}

func (machine) Capable(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// UserNamespace starts a program that does not exist: the child that finds it
// missing has been made in the namespace before.
func (machine) UserNamespace() error {
	const nothing = "/proc/self/no-such-program"
	_, err := os.StartProcess(nothing, []string{nothing}, &os.ProcAttr{
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER},
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return bare(err)
}

// bare takes the program, which means nothing to a person, from an error.
func bare(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// TakeFile takes a file from this process, which needs no rights.
func (machine) TakeFile() error {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, pidfd, 0)
	if err != nil {
		return err
	}
	return unix.Close(dup)
}

func (machine) OpenThread() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pidfd, err := unix.PidfdOpen(unix.Gettid(), unix.PIDFD_THREAD)
	if err != nil {
		return err
	}
	return unix.Close(pidfd)
}

func (machine) OpenTree() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func (machine) DeviceProgram() error { return features.HaveProgramType(ebpf.CGroupDevice) }

func (machine) Guarded(cgroup string) (bool, error) { return guard.Stands(cgroup) }

func (machine) Owner(namespace string) (uint64, error) {
	ns, err := os.Open(namespace)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	owner, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return 0, os.NewSyscallError("ioctl NS_GET_USERNS", err)
	}
	defer unix.Close(owner)
	var st unix.Stat_t
	if err := unix.Fstat(owner, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}
