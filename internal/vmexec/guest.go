package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guest is what vmexec does as the first process of a guest. It does not return.
func guest() {
	err := runGuest()
	for err == nil {
		// The host ends the guest. The runtime would take select{} for a deadlock
		// and end it before the host has read all.
		_ = unix.Pause()
	}
	fmt.Println("vmexec:", err) // to the console, which the host shows
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	fmt.Println("vmexec: reboot:", err)
	os.Exit(1) // a kernel panics when its first process exits
}

func runGuest() error {
	var s spec
	text, err := os.ReadFile(specPath)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	initramfs, err := os.OpenRoot("/") // which later is another
	if err != nil {
		return err
	}
	if err := loadModules(initramfs, s.Base); err != nil {
		return err
	}
	if err := enterRoot(s.Roots); err != nil {
		return err
	}
	if err := loadModules(initramfs, s.Modules); err != nil {
		return err
	}
	// The directory comes with the module.
	const config = "/sys/kernel/config"
	if _, err := os.Stat(config); err == nil {
		if err := (mount{"configfs", config, "configfs", 0, ""}).do(); err != nil {
			return err
		}
	}
	if err := finishRoot(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return err
	}
	for _, path := range s.Results {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	}
	wire, err := openWire()
	if err != nil {
		return err
	}
	status, err := runTest(s, frameWriter{wire, outputFrame})
	if err != nil {
		return err
	}
	if status != 0 {
		if err := tellKernelLog(frameWriter{wire, outputFrame}); err != nil {
			return err
		}
	}
	if len(s.Results) > 0 {
		if err := writeTar(frameWriter{wire, resultFrame}, s.Results); err != nil {
			return err
		}
	}
	_, err = frameWriter{wire, exitFrame}.Write([]byte{byte(status)})
	return err
}

func loadModules(initramfs *os.Root, names []string) error {
	for _, name := range names {
		data, err := initramfs.ReadFile(name)
		if err != nil {
			return err
		}
		if err := unix.InitModule(data, ""); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// enterRoot makes the Debian trees of the host, with what the host carries here
// laid over them, the root of this process and all that come from it. What is
// written there stays in memory.
func enterRoot(trees int) error {
	const root = "/root"
	if err := os.MkdirAll(carryPath, 0o755); err != nil {
		return err
	}
	mounts := []mount{{"tmpfs", "/rw", "tmpfs", 0, "mode=755"}}
	lower := "/" + carryPath
	for i := range trees {
		tag := rootTag(i)
		mounts = append(mounts, mount{tag, "/" + tag, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,cache=loose,msize=524288"})
		lower += ":/" + tag
	}
	if err := mountAll(mounts); err != nil {
		return err
	}
	for _, dir := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mountAll([]mount{
		{"root", root, "overlay", 0, "lowerdir=" + lower + ",upperdir=/rw/upper,workdir=/rw/work"},
		{"proc", root + "/proc", "proc", 0, ""},
		{"sysfs", root + "/sys", "sysfs", 0, ""},
		{"devtmpfs", root + "/dev", "devtmpfs", 0, ""},
		{"devpts", root + "/dev/pts", "devpts", 0, "mode=620,ptmxmode=666"},
		{"tmpfs", root + "/dev/shm", "tmpfs", 0, "mode=1777"},
		{"tmpfs", root + "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", root + "/tmp", "tmpfs", 0, "mode=1777"},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"debugfs", root + "/sys/kernel/debug", "debugfs", 0, ""},
		{"bpf", root + "/sys/fs/bpf", "bpf", 0, ""},
	}); err != nil {
		return err
	}
	// A tmpfs hides what is carried there.
	for _, dir := range []string{"/run", "/tmp"} {
		err := os.CopyFS(root+dir, os.DirFS("/"+carryPath+dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// As switch_root does: a root that pivot_root works on.
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(root, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// finishRoot does what the installation of base-passwd and base-files would.
func finishRoot() error {
	for _, name := range []string{"passwd", "group"} {
		text, err := os.ReadFile("/usr/share/base-passwd/" + name + ".master")
		if err != nil {
			return err
		}
		if err := os.WriteFile("/etc/"+name, text, 0o644); err != nil {
			return err
		}
	}
	if err := os.Remove("/var/run"); err != nil {
		return err
	}
	return os.Symlink("/run", "/var/run")
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// openWire opens the virtio-serial port of that name. The driver learns of it
// from the device, some time after it is loaded.
func openWire() (*os.File, error) {
	for {
		files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(text)) == wireName {
				return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(file))), os.O_WRONLY, 0)
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// runTest runs the test and gives its exit status. Nothing it started is left.
func runTest(s spec, out io.Writer) (status int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(out, r)
		copied <- err
	}()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(s.Path, append([]string{s.Path}, s.Args...), &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: []uintptr{null.Fd(), w.Fd(), w.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", s.Path, err)
	}
	w.Close()
	end := reap(pid)
	// Whoever is left would hold the pipe open.
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return 0, err
	}
	if err := <-copied; err != nil {
		return 0, err
	}
	if end.Signaled() {
		fmt.Fprintf(out, "vmexec: the test was killed: %v\n", end.Signal())
		return 1, nil
	}
	return end.ExitStatus(), nil
}

// tellKernelLog prints the end of the kernel's log, with the tasks that are stuck:
// a test can fail by what only the kernel knows.
func tellKernelLog(out io.Writer) error {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0); err != nil {
		return err
	}
	log := make([]byte, tailSize)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	if err != nil {
		return fmt.Errorf("the kernel's log: %w", err)
	}
	_, err = fmt.Fprintf(out, "vmexec: the test failed; the kernel's log ends:\n%s", log[:n])
	return err
}

// reap waits for pid, and for the orphans that fall to the first process.
func reap(pid int) unix.WaitStatus {
	for {
		var status unix.WaitStatus
		if got, err := unix.Wait4(-1, &status, 0, nil); err == nil && got == pid {
			return status
		}
	}
}
