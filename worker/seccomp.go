//go:build linux

package worker

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowed is what the Go runtime needs, and sockets that are open.
var allowed = append([]uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_CLOSE,
	unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SHUTDOWN,
	unix.SYS_LISTEN, unix.SYS_ACCEPT4, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
	unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_FSTAT,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,

	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_RESTART_SYSCALL,
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_BRK,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRANDOM, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	// Threads of the C library, which the race detector comes with.
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
}, allowedHere...)

// allowedOfFcntl are its commands that do nothing to anybody else: F_SETOWN and
// F_SETSIG would send signals to all processes of the same user, other workers
// among them.
var allowedOfFcntl = []uint32{unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL}

// Offsets in struct seccomp_data of include/uapi/linux/seccomp.h.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16 // the lower half, on little-endian machines
	dataArg1   = 24
	dataArg2   = 32
)

// Results of a filter, in the same file.
const (
	resultKill  = 0x80000000
	resultErrno = 0x00050000
	resultAllow = 0x7fff0000
)

// filter is a program for the kernel that refuses all but what is allowed: with
// EPERM, so that what the runtime only tries does no harm.
func filter() []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		hasBit = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		end    = unix.BPF_RET | unix.BPF_K
	)
	p := []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: equal, K: auditArch, Jt: 1},
		{Code: end, K: resultKill},
		{Code: load, K: dataNumber},
	}
	only := func(number uint32, tests ...unix.SockFilter) {
		p = append(p, unix.SockFilter{Code: equal, K: number, Jf: uint8(len(tests))})
		p = append(p, tests...)
	}
	oneOf := func(numbers []uint32) (p []unix.SockFilter) {
		for i, number := range numbers {
			p = append(p, unix.SockFilter{Code: equal, K: number, Jt: uint8(len(numbers) - i)})
		}
		return append(p, unix.SockFilter{Code: end, K: resultErrno | uint32(unix.EPERM)}, unix.SockFilter{Code: end, K: resultAllow})
	}
	// Threads, but no processes.
	only(unix.SYS_CLONE, unix.SockFilter{Code: load, K: dataArg0},
		unix.SockFilter{Code: hasBit, K: unix.CLONE_THREAD, Jf: 1},
		unix.SockFilter{Code: end, K: resultAllow}, unix.SockFilter{Code: end, K: resultErrno | uint32(unix.EPERM)})
	// What clone3 wants is in memory. The C library uses clone without it.
	only(unix.SYS_CLONE3, unix.SockFilter{Code: end, K: resultErrno | uint32(unix.ENOSYS)})
	// Signals of the runtime to its own threads.
	only(unix.SYS_TGKILL, unix.SockFilter{Code: load, K: dataArg0},
		unix.SockFilter{Code: equal, K: uint32(os.Getpid()), Jf: 1},
		unix.SockFilter{Code: end, K: resultAllow}, unix.SockFilter{Code: end, K: resultErrno | uint32(unix.EPERM)})
	only(unix.SYS_FCNTL, append([]unix.SockFilter{{Code: load, K: dataArg1}}, oneOf(allowedOfFcntl)...)...)
	// No new code.
	for _, number := range []uint32{unix.SYS_MMAP, unix.SYS_MPROTECT} {
		only(number, unix.SockFilter{Code: load, K: dataArg2},
			unix.SockFilter{Code: hasBit, K: unix.PROT_EXEC, Jf: 1},
			unix.SockFilter{Code: end, K: resultErrno | uint32(unix.EPERM)}, unix.SockFilter{Code: end, K: resultAllow})
	}
	return append(p, oneOf(allowed)...)
}

// Of include/uapi/linux/seccomp.h.
const (
	setModeFilter = 1
	flagTSync     = 1
)

// loadFilter sets a filter for all threads of the process.
func loadFilter(p []unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	thread, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flagTSync, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	if thread != 0 {
		return fmt.Errorf("thread %d has a filter of its own", thread)
	}
	return nil
}
