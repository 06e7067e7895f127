package main

import (
	"context"
	"fmt"
	"os"

	"github.com/usbns/usbns/internal/debpkg"
)

// documentation is left out of trees: nobody reads it there.
var documentation = []string{"./usr/share/doc", "./usr/share/man", "./usr/share/info", "./usr/share/locale", "./usr/share/lintian"}

var qemuTree = debpkg.Tree{
	Name:     "qemu",
	Packages: []string{"qemu-system-x86"},
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

func prepare(ctx context.Context, update bool) error {
	cache, err := debpkg.Open(os.Stderr)
	if err != nil {
		return err
	}
	trees := []debpkg.Tree{qemuTree, rootTree, kernelTrees["6.12"], kernelTrees["6.1"]}
	if update {
		return cache.Update(ctx, trees...)
	}
	for _, t := range trees {
		if _, err := cache.Path(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// installation is where everything of Debian's stands that a guest needs.
type installation struct {
	qemu, root string
	kernel     *kernel
}

func install(ctx context.Context, kernel string) (in installation, err error) {
	cache, err := debpkg.Open(os.Stderr)
	if err != nil {
		return in, err
	}
	tree, ok := kernelTrees[kernel]
	if !ok {
		return in, fmt.Errorf("no kernel %s: there are 6.12 and 6.1", kernel)
	}
	dir, err := cache.Path(ctx, tree)
	if err != nil {
		return in, err
	}
	if in.kernel, err = openKernel(dir); err != nil {
		return in, err
	}
	if in.qemu, err = cache.Path(ctx, qemuTree); err != nil {
		return in, err
	}
	in.root, err = cache.Path(ctx, rootTree)
	return in, err
}
