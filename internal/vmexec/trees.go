package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

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
	return append(slices.Collect(maps.Values(kernelTrees)), toolsTree, rootTree)
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
	for version := range kernelTrees {
		if _, err := install(ctx, os.Stderr, version); err != nil {
			return err
		}
	}
	return nil
}

// installation is where everything of Debian's stands that a guest needs.
type installation struct {
	tools, root string
	kernel      *kernel
}

func install(ctx context.Context, log io.Writer, version string) (in installation, err error) {
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
	if in.root, err = cache.Path(ctx, rootTree); err != nil {
		return in, err
	}
	dir, err := cache.Path(ctx, tree)
	if err != nil {
		return in, fmt.Errorf("%w (Debian 12 has its kernels in bookworm and bookworm-security)", err)
	}
	in.kernel, err = openKernel(ctx, dir, in.tools)
	return in, err
}
