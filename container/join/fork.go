//go:build linux

package join

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A script is the system calls that a child makes, the last of which has it
// become a program.
type script struct {
	calls []call
	names []string // what each is for
	keep  []any    // what the arguments point to
}

type call struct {
	number uintptr
	args   [5]uintptr
}

func (s *script) add(name string, number uintptr, args ...uintptr) {
	c := call{number: number}
	copy(c.args[:], args)
	s.calls, s.names = append(s.calls, c), append(s.names, name)
}

// exec adds the last call.
func (s *script) exec(program *os.File, argv, env []string) error {
	nothing, err := unix.BytePtrFromString("")
	if err != nil {
		return err
	}
	args, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	vars, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	s.keep = append(s.keep, nothing, args, vars)
	s.add("run the program", unix.SYS_EXECVEAT, program.Fd(), uintptr(unsafe.Pointer(nothing)),
		uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&vars[0])), unix.AT_EMPTY_PATH)
	return nil
}

// cloneArgs is struct clone_args of include/uapi/linux/sched.h.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// fork makes a child in a cgroup and returns when it has become its program.
func (s *script) fork(cgroup *os.File) (pid int, err error) {
	failed, report, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer failed.Close()
	args := cloneArgs{
		flags:      unix.CLONE_INTO_CGROUP | unix.CLONE_CLEAR_SIGHAND,
		exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(cgroup.Fd()),
	}
	child, errno := forkAndCall(&args, s.calls, report.Fd())
	runtime.KeepAlive(s.keep)
	report.Close()
	if errno != 0 {
		return 0, os.NewSyscallError("clone3", errno)
	}
	var what struct{ Call, Errno uint64 }
	err = binary.Read(failed, binary.NativeEndian, &what)
	if errors.Is(err, io.EOF) { // the program has closed its end
		return int(child), nil
	}
	_, _ = unix.Wait4(int(child), nil, 0, nil)
	if err != nil || what.Call >= uint64(len(s.names)) {
		return 0, fmt.Errorf("a child failed: %v", err)
	}
	return 0, fmt.Errorf("%s: %w", s.names[what.Call], syscall.Errno(what.Errno))
}

// forkAndCall returns in the parent only. In the child there is one thread and no
// runtime: nothing may be allocated, no stack may grow, and no handler of Go's may
// run, so that signals are blocked until the kernel has taken the handlers away.
//
//go:norace
//go:nosplit
//go:noinline
func forkAndCall(args *cloneArgs, calls []call, report uintptr) (pid uintptr, errno syscall.Errno) {
	const signals = 8 // bytes of a set
	all, before := ^uint64(0), uint64(0)
	_, _, errno = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&before)), signals, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	pid, _, errno = unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&before)), 0, signals, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for i := range calls {
		c := &calls[i]
		if _, _, errno = unix.RawSyscall6(c.number, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], 0); errno != 0 {
			what := [2]uint64{uint64(i), uint64(errno)}
			unix.RawSyscall(unix.SYS_WRITE, report, uintptr(unsafe.Pointer(&what)), unsafe.Sizeof(what))
			break
		}
	}
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}
