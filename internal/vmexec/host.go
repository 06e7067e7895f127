package main

import (
	"bufio"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// grace is what a guest may take beyond the test's own timeout, to boot and to
// end. go test itself kills vmexec a minute after the timeout.
const grace = 30 * time.Second

// guestModules give the guest its root and its wires.
var guestModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

type host struct {
	kernel  string
	console bool
}

// run runs a test binary in a guest. Its exit status, if not 0, is an exitError.
func (h *host) run(ctx context.Context, binary string, args []string) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	needs, err := readNeeds(dir)
	if err != nil {
		return err
	}
	flags := parseTestFlags(args)
	if needs.nothingToRun(flags) {
		fmt.Println("testing: warning: no tests to run\nPASS")
		return nil
	}
	timeout, err := flags.timeout()
	if err != nil {
		return err
	}
	in, err := install(ctx, h.kernel)
	if err != nil {
		return err
	}
	results := flags.results(dir)
	initramfs, err := h.initramfs(in, needs, spec{
		Path:    filepath.Join(dir, filepath.Base(binary)),
		Args:    args,
		Env:     environment(needs.env),
		Dir:     dir,
		Results: results,
	}, binary)
	if err != nil {
		return err
	}
	defer os.Remove(initramfs)

	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout+grace,
			fmt.Errorf("the guest was killed: it had not ended %v after the test's timeout of %v", grace, timeout))
		defer cancel()
	}
	vm := machine{
		tools:     in.tools,
		kernel:    in.kernel.image,
		root:      in.root,
		initramfs: initramfs,
		memory:    needs.memory,
		extra:     needs.qemu,
		console:   h.console,
		results:   results,
	}
	return vm.run(ctx)
}

// environment is the guest's: the host's values of the named variables and of
// those by which the Go runtime is told what to do.
func environment(names []string) []string {
	env := []string{
		"HOME=/root",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C.UTF-8",
	}
	for _, name := range append([]string{"GODEBUG", "GOTRACEBACK", "GOCOVERDIR"}, names...) {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// initramfs writes the archive the kernel unpacks as the guest's first root, to
// a file of its own.
func (h *host) initramfs(in installation, n needs, s spec, binary string) (name string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	for _, program := range []string{self, binary} {
		if err := checkStatic(program); err != nil {
			return "", err
		}
	}

	loaded := map[string]bool{}
	base, err := in.kernel.resolve(guestModules, loaded)
	if err != nil {
		return "", err
	}
	wanted, err := in.kernel.resolve(n.modules, loaded)
	if err != nil {
		return "", err
	}

	f, err := os.CreateTemp("", "vmexec-*.cpio")
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	buf := bufio.NewWriterSize(f, 1<<20)
	archive := newCPIO(buf)

	s.Base, err = addModules(archive, base)
	if err != nil {
		return "", err
	}
	s.Modules, err = addModules(archive, wanted)
	if err != nil {
		return "", err
	}
	carry := append([]carried{{binary, s.Path}}, n.files...)
	for _, name := range append([]string{"testdata"}, s.Results...) {
		src := resolvePath(s.Dir, name)
		if _, err := os.Stat(src); err == nil {
			carry = append(carry, carried{src, src})
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	for _, c := range carry {
		if err := archive.tree(path.Join(carryPath, filepath.ToSlash(c.dst)), c.src); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(
		archive.tree("init", self),
		archive.file(specPath, 0o644, text),
		archive.close(),
		buf.Flush(),
	)
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
