package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/ulikunitz/xz"

	"github.com/usbns/usbns/internal/debpkg"
)

// A kernel is an unpacked Debian kernel package. It carries no modules.dep:
// that is made by depmod on the machine that installs it.
type kernel struct {
	image   string            // uncompressed
	files   map[string]string // module's name -> file
	builtin map[string]bool
}

// A module is ready to be loaded.
type module struct {
	name string
	data []byte
}

func openKernel(ctx context.Context, tree, tools string) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s has %d kernels, not one", tree, len(images))
	}
	k := &kernel{files: map[string]string{}, builtin: map[string]bool{}}
	if k.image, err = uncompressed(ctx, images[0], tools); err != nil {
		return nil, fmt.Errorf("uncompress %s: %w", images[0], err)
	}
	dir := filepath.Join(tree, "lib/modules", strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"))
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for file := range strings.FieldsSeq(string(builtin)) {
		k.builtin[moduleName(file)] = true
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			k.files[moduleName(path)] = path
		}
		return err
	})
	return k, err
}

// uncompressed gives the ELF kernel within a bzImage, as a file that is made
// beside it once. QEMU enters it directly; a kernel that uncompresses itself
// under emulation takes one to three seconds more for each guest.
func uncompressed(ctx context.Context, bzImage, tools string) (string, error) {
	image := filepath.Join(filepath.Dir(bzImage), "vmlinux")
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	data, err := os.ReadFile(bzImage)
	if err != nil {
		return "", err
	}
	payload, err := bzImagePayload(data)
	if err != nil {
		return "", err
	}
	program := "usr/bin/xz"
	if bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")) {
		program = "usr/bin/zstd"
	}
	tmp, err := renameio.NewPendingFile(image)
	if err != nil {
		return "", err
	}
	defer tmp.Cleanup()
	cmd := debpkg.Command(ctx, tools, program, "-dc")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(payload), tmp, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w", program, err)
	}
	return image, tmp.CloseAtomicallyReplace()
}

// bzImagePayload finds the compressed kernel by the fields of the setup header,
// see Documentation/arch/x86/boot.rst in the kernel.
func bzImagePayload(data []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1
		magic         = 0x202
		payloadOffset = 0x248
		payloadLength = 0x24c
		headerEnd     = 0x250
		trailer       = 4 // the uncompressed size, which is not the compressor's
	)
	if len(data) < headerEnd || string(data[magic:magic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	start := (int64(data[setupSects])+1)*512 + int64(binary.LittleEndian.Uint32(data[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(data[payloadLength:])) - trailer
	if start > end || end > int64(len(data)) {
		return nil, errors.New("not a bzImage: the payload lies outside")
	}
	return data[start:end], nil
}

// moduleName is the kernel's name of the module in a file: it has no dashes.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// resolve gives the named modules and all they depend on, in an order in which
// they load, without what is built in and what loaded already holds.
func (k *kernel) resolve(names []string, loaded map[string]bool) ([]module, error) {
	var order []module
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		if loaded[name] || k.builtin[name] {
			return nil
		}
		file, ok := k.files[name]
		if !ok {
			return fmt.Errorf("%s has no module %s", filepath.Base(k.image), name)
		}
		loaded[name] = true // before the dependencies: a cycle ends
		data, err := readModule(file)
		if err != nil {
			return err
		}
		deps, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, dep := range deps {
			if err := add(dep); err != nil {
				return fmt.Errorf("%w, which %s depends on", err, name)
			}
		}
		order = append(order, module{name, data})
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// readModule decompresses: Debian ships 6.1 as .ko and 6.12 as .ko.xz.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if filepath.Ext(file) != ".xz" {
		return io.ReadAll(f)
	}
	r, err := xz.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return data, nil
}

// dependencies reads the depends= of a module's .modinfo, a list of
// NUL-terminated key=value strings.
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if deps, ok := strings.CutPrefix(entry, "depends="); ok && deps != "" {
			return strings.Split(deps, ","), nil
		}
	}
	return nil, nil
}
