package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/usbns/usbns/internal/debpkg"
)

// documentation is left out of trees: nobody reads it there.
var documentation = []string{"./usr/share/doc", "./usr/share/man", "./usr/share/info", "./usr/share/locale", "./usr/share/lintian"}

// toolsTree is what runs on this machine.
var toolsTree = debpkg.Tree{
	Name:     "tools",
	Packages: []string{"qemu-system-x86", "xz-utils", "zstd"},
	Without:  documentation,
}

// rootTree is what a guest sees as /.
var rootTree = debpkg.Tree{
	Name: "root",
	Packages: []string{
		"base-files", "base-passwd", "bash", "coreutils", "dash", "e2fsprogs", "findutils", "grep", "iproute2", "mount", "procps", "sed", "util-linux",
		"kmod", "udev", "usb.ids", "usbip", "usbutils",
	},
	Without: documentation,
}

// extraTrees are laid over the root of the guests that ask for them.
var extraTrees = map[string]debpkg.Tree{
	"runtimes": {
		Name:     "runtimes",
		Packages: []string{"lxc", "runc", "crun"},
		Beside:   rootTree.Packages,
		Without:  documentation,
	},
}

var kernelTrees = map[string]debpkg.Tree{
	"6.12": kernelTree("linux-6.12", "linux-image-6.12-amd64"),
	"6.1":  kernelTree("linux-6.1", "linux-image-amd64"),
}

// kernelTree is a kernel's image and modules without what would install it.
func kernelTree(name, pkg string) debpkg.Tree {
	return debpkg.Tree{
		Name:     name,
		Packages: []string{pkg},
		Only:     "linux-image-*",
		Without: append([]string{
			"./boot/System.map-*",
			"./lib/modules/*/kernel/drivers/gpu",
			"./lib/modules/*/kernel/drivers/infiniband",
			"./lib/modules/*/kernel/drivers/net/ethernet",
			"./lib/modules/*/kernel/drivers/net/wireless",
		}, documentation...),
	}
}

func trees() []debpkg.Tree {
	all := []debpkg.Tree{toolsTree, rootTree}
	all = slices.AppendSeq(all, maps.Values(kernelTrees))
	return slices.AppendSeq(all, maps.Values(extraTrees))
}

// prepare fetches everything guests of any kernel need.
func prepare(ctx context.Context, update bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("no test can run in a guest: %w", err)
		}
	}()
	if update {
		cache, err := debpkg.Open(os.Stderr)
		if err != nil {
			return err
		}
		if err := cache.Update(ctx, trees()...); err != nil {
			return err
		}
	}
	extra := slices.Collect(maps.Keys(extraTrees))
	for version := range kernelTrees {
		if _, err := install(ctx, os.Stderr, version, extra); err != nil {
			return err
		}
	}
	return nil
}

// installation is where everything of Debian's stands that a guest needs.
type installation struct {
	tools  string
	roots  []string // the trees of the guest's root, upper ones first
	kernel *kernel
}

func install(ctx context.Context, log io.Writer, version string, extra []string) (in installation, err error) {
	tree, ok := kernelTrees[version]
	if !ok {
		return in, fmt.Errorf("no kernel %s: there are 6.12 and 6.1", version)
	}
	cache, err := debpkg.Open(log)
	if err != nil {
		return in, err
	}
	if in.tools, err = cache.Path(ctx, toolsTree); err != nil {
		return in, err
	}
	layers := []debpkg.Tree{rootTree}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(extra))) {
		layer, ok := extraTrees[name]
		if !ok {
			return in, fmt.Errorf("no tree %s: there are %s", name, strings.Join(slices.Sorted(maps.Keys(extraTrees)), ", "))
		}
		layers = slices.Insert(layers, 0, layer)
	}
	for _, layer := range layers {
		root, err := cache.Path(ctx, layer)
		if err != nil {
			return in, err
		}
		in.roots = append(in.roots, root)
	}
	dir, err := cache.Path(ctx, tree)
	if err != nil {
		return in, fmt.Errorf("%w (Debian 12 has its kernels in bookworm and bookworm-security)", err)
	}
	in.kernel, err = openKernel(ctx, dir, in.tools)
	return in, err
}
