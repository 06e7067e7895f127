package main

import (
	"bufio"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// defaultGrace is below the minute after which go test kills vmexec.
const defaultGrace = 30 * time.Second

// guestModules give the guest its root and its wire.
var guestModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// A host runs tests in guests.
type host struct {
	kernel  string        // Debian's version
	console bool          // show the kernel's log as it comes
	dir     string        // of the package
	init    string        // this program
	grace   time.Duration // to boot and to end, beyond the test's own timeout
	stdout  io.Writer     // the test's
	stderr  io.Writer
}

func newHost() (*host, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &host{dir: dir, init: self, grace: defaultGrace, stdout: os.Stdout, stderr: os.Stderr}, nil
}

// run runs a test binary in a guest. Its exit status, if not 0, is an exitError.
func (h *host) run(ctx context.Context, binary string, args []string) error {
	needs, err := readNeeds(h.dir)
	if err != nil {
		return err
	}
	flags := parseTestFlags(args)
	if needs.nothingToRun(flags) {
		_, err := fmt.Fprintln(h.stdout, "testing: warning: no tests to run\nPASS")
		return err
	}
	timeout, err := flags.timeout()
	if err != nil {
		return err
	}
	log := testLog(binary, flags)
	if log != "" {
		args = append([]string{"-test.testlogfile=" + log}, args...)
		flags = parseTestFlags(args)
	}
	in, err := install(ctx, h.stderr, h.kernel, needs.trees)
	if err != nil {
		return err
	}
	initramfs, err := h.initramfs(in, needs, spec{
		Path:    filepath.Join(h.dir, filepath.Base(binary)),
		Args:    args,
		Env:     environment(needs.env),
		Dir:     h.dir,
		Roots:   len(in.roots),
		Results: flags.results(h.dir),
	}, binary)
	if err != nil {
		return err
	}
	defer initramfs.Close()

	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout+h.grace,
			fmt.Errorf("the guest was killed: it had not ended %v after the test's timeout of %v", h.grace, timeout))
		defer cancel()
	}
	vm := machine{
		tools:     in.tools,
		kernel:    in.kernel.image,
		roots:     in.roots,
		initramfs: initramfs,
		memory:    needs.memory,
		extra:     needs.qemu,
		console:   h.console,
		results:   flags.results(h.dir),
		stdout:    h.stdout,
		stderr:    h.stderr,
	}
	err = vm.run(ctx)
	if err == nil && log != "" {
		err = needs.addToTestLog(log, h.init)
	}
	return err
}

// environment is the guest's: the host's values of the named variables and of
// those by which the Go runtime is told what to do.
func environment(names []string) []string {
	env := []string{
		"HOME=/root",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C",
	}
	for _, name := range append([]string{"GODEBUG", "GOTRACEBACK", "GOCOVERDIR"}, names...) {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// initramfs gives the archive the kernel unpacks as the guest's first root, as
// a file that only this process has.
func (h *host) initramfs(in installation, n needs, s spec, binary string) (_ *os.File, err error) {
	for _, program := range []string{h.init, binary} {
		if err := checkStatic(program); err != nil {
			return nil, err
		}
	}
	loaded := map[string]bool{}
	base, err := in.kernel.resolve(guestModules, loaded)
	if err != nil {
		return nil, err
	}
	wanted, err := in.kernel.resolve(n.modules, loaded)
	if err != nil {
		return nil, err
	}

	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	buf := bufio.NewWriterSize(f, 1<<20)
	archive := newCPIO(buf)

	s.Base, err = addModules(archive, base)
	if err != nil {
		return nil, err
	}
	s.Modules, err = addModules(archive, wanted)
	if err != nil {
		return nil, err
	}
	carry := append([]carried{{binary, s.Path}}, n.files...)
	for _, name := range append([]string{"testdata"}, s.Results...) {
		src := resolvePath(s.Dir, name)
		if _, err := os.Stat(src); err == nil {
			carry = append(carry, carried{src, src})
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for _, c := range carry {
		if err := archive.tree(path.Join(carryPath, mergedUsr(c.dst)), c.src); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return f, errors.Join(
		archive.tree("init", h.init),
		archive.file(specPath, 0o644, text),
		archive.close(),
		buf.Flush(),
	)
}

// mergedUsr follows the symlinks from / to /usr: a directory in their place would
// hide what they lead to.
func mergedUsr(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "bin", "sbin", "lib", "lib64":
		return "/usr" + path
	}
	return path
}

// checkStatic refuses a program that would need the host's libraries.
func checkStatic(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return err
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return fmt.Errorf("%s is dynamically linked and cannot run in a guest: build with CGO_ENABLED=0", program)
	}
	return nil
}

func addModules(archive *cpio, modules []module) (files []string, err error) {
	for _, m := range modules {
		name := path.Join(modulesPath, m.name+".ko")
		files = append(files, name)
		if err := archive.file(name, 0o644, m.data); err != nil {
			return nil, err
		}
	}
	return files, nil
}
