//go:build linux

package sysfs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/usbns/usbns/controller"
)

// fileSize is the size that files claim, as in sysfs.
const fileSize = 4096

// staticTimeout is for how long the kernel may keep what never changes. All else
// it asks for each time.
const staticTimeout = time.Hour

// A tree answers the kernel's requests.
type tree struct {
	fuse.RawFileSystem // the requests that it has no answer to

	table *controller.Table
	mint  mint
	files files
	attacher
}

func (t *tree) String() string { return "usbns" }

// Lookup implements [fuse.RawFileSystem].
func (t *tree) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	n := t.child(t.mint.ofID(header.NodeId), name)
	if n == 0 {
		return fuse.ENOENT
	}
	if !t.attributes(n, &out.Attr) {
		return fuse.ENOENT
	}
	out.NodeId = t.mint.id(n)
	if n <= nodeNameless {
		out.SetEntryTimeout(staticTimeout)
		out.SetAttrTimeout(staticTimeout)
	}
	return fuse.OK
}

// child returns 0 if there is none of that name.
func (t *tree) child(parent node, name string) node {
	switch parent {
	case nodeRoot:
		return map[string]node{"devices": nodeDevices, "c": nodeNameless}[name]
	case nodeDevices:
		return map[string]node{"platform": nodePlatform}[name]
	case nodePlatform:
		if c := t.table.Controller(indexOf(name)); c != nil {
			return nodeOf(c, kindDir)
		}
		return 0
	case nodeNameless:
		n := t.mint.node(name)
		if _, k := controllerOf(t.table, n); k == kindNamelessDir {
			return n
		}
		return 0
	}
	c, k := controllerOf(t.table, parent)
	for _, e := range k.entries() {
		if e.name == name {
			return nodeOf(c, e.kind)
		}
	}
	return 0
}

// attributes returns false if n is gone.
func (t *tree) attributes(n node, out *fuse.Attr) bool {
	*out = fuse.Attr{Ino: t.mint.inode(n), Mode: syscall.S_IFDIR | 0o555, Nlink: 2, Blksize: fileSize}
	if n <= nodeNameless {
		return true
	}
	c, k := controllerOf(t.table, n)
	if c == nil {
		return false
	}
	out.Uid, out.Gid = c.Config().UID, c.Config().GID
	if k.entries() != nil {
		return true
	}
	out.Mode = syscall.S_IFREG | 0o444
	if k.written() {
		out.Mode = syscall.S_IFREG | 0o200
	}
	out.Size, out.Nlink = fileSize, 1
	return true
}

// GetAttr implements [fuse.RawFileSystem].
func (t *tree) GetAttr(_ <-chan struct{}, input *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := t.mint.ofID(input.NodeId)
	if !t.attributes(n, &out.Attr) {
		return fuse.ENODEV
	}
	if n <= nodeNameless {
		out.SetTimeout(staticTimeout)
	}
	return fuse.OK
}

// SetAttr implements [fuse.RawFileSystem]. A shell truncates what it writes to.
func (t *tree) SetAttr(_ <-chan struct{}, input *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if input.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return fuse.EPERM
	}
	if !t.attributes(t.mint.ofID(input.NodeId), &out.Attr) {
		return fuse.ENODEV
	}
	return fuse.OK
}

// StatFs implements [fuse.RawFileSystem].
func (t *tree) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status { return fuse.OK }

// OpenDir implements [fuse.RawFileSystem].
func (t *tree) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir implements [fuse.RawFileSystem]. An offset is the place after an entry:
// that of the root's and of a controller's entries counts them, and that in
// platform is the index after the controller's.
func (t *tree) ReadDir(_ <-chan struct{}, input *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	n := t.mint.ofID(input.NodeId)
	if n == nodePlatform {
		t.readPlatform(int(min(input.Offset, controller.MaxControllers)), out)
		return fuse.OK
	}
	var list []fuse.DirEntry
	add := func(name string, child node) {
		list = append(list, fuse.DirEntry{Name: name, Mode: syscall.S_IFDIR, Ino: t.mint.inode(child), Off: uint64(len(list) + 1)})
	}
	switch n {
	case nodeRoot:
		add("c", nodeNameless)
		add("devices", nodeDevices)
	case nodeDevices:
		add("platform", nodePlatform)
	case nodeNameless:
	default:
		c, k := controllerOf(t.table, n)
		if c == nil {
			return fuse.ENODEV
		}
		for _, e := range k.entries() {
			add(e.name, nodeOf(c, e.kind))
			list[len(list)-1].Mode = syscall.S_IFREG
		}
	}
	for _, e := range list[min(input.Offset, uint64(len(list))):] {
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

func (t *tree) readPlatform(from int, out *fuse.DirEntryList) {
	for i := from; i < controller.MaxControllers; i++ {
		c := t.table.Controller(i)
		if c == nil {
			continue
		}
		e := fuse.DirEntry{Name: dirName(i), Mode: syscall.S_IFDIR, Ino: t.mint.inode(nodeOf(c, kindDir)), Off: uint64(i + 1)}
		if !out.AddDirEntry(e) {
			return
		}
	}
}
