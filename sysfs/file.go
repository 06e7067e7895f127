//go:build linux

package sysfs

import (
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/vhci"
)

// maxOpen bounds the open files of one controller. Those of attach hold a
// descriptor of the daemon.
const maxOpen = 128

// A file is an open file.
type file struct {
	c      *controller.Controller
	kind   kind
	append bool   // the kernel writes at the size it has been told
	caller Caller // who opened attach; nil for the others

	mu   sync.Mutex
	text []byte // what a reader of small pieces is reading
}

// files are the open files by handle.
type files struct {
	mu     sync.Mutex
	last   uint64
	open   map[uint64]*file
	counts map[*controller.Controller]int
	closed bool
}

// add returns the handle of a file, or false if there are too many.
func (fs *files) add(f *file) (uint64, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed || fs.counts[f.c] >= maxOpen {
		return 0, false
	}
	if fs.open == nil {
		fs.open, fs.counts = make(map[uint64]*file), make(map[*controller.Controller]int)
	}
	fs.last++
	fs.open[fs.last] = f
	fs.counts[f.c]++
	return fs.last, true
}

func (fs *files) get(handle uint64) *file {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.open[handle]
}

// remove closes a file.
func (fs *files) remove(handle uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.open[handle]
	if f == nil {
		return
	}
	delete(fs.open, handle)
	if fs.counts[f.c]--; fs.counts[f.c] == 0 {
		delete(fs.counts, f.c)
	}
	f.close()
}

// close closes all files for good.
func (fs *files) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	for _, f := range fs.open {
		f.close()
	}
	fs.open, fs.counts = nil, nil
}

func (f *file) close() {
	if f.caller != nil {
		f.caller.Close()
	}
}

// Open implements [fuse.RawFileSystem]. The kernel has checked the mode for all
// but those who may override it.
func (t *tree) Open(_ <-chan struct{}, input *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c, k := controllerOf(t.table, t.mint.ofID(input.NodeId))
	if c == nil {
		return fuse.ENODEV
	}
	want := uint32(syscall.O_RDONLY)
	if k.written() {
		want = syscall.O_WRONLY
	}
	if input.Flags&syscall.O_ACCMODE != want {
		return fuse.EACCES
	}
	f := &file{c: c, kind: k, append: input.Flags&syscall.O_APPEND != 0}
	if k == kindAttach {
		caller, err := t.identify(int(input.Pid))
		if err != nil {
			return t.refused(c, int(input.Pid), err)
		}
		f.caller = caller
	}
	handle, ok := t.files.add(f)
	if !ok {
		f.close()
		return fuse.Status(syscall.ENFILE)
	}
	out.Fh = handle
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	if k.written() {
		// Each write begins at 0, and two may be under way.
		out.OpenFlags |= fuse.FOPEN_STREAM | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	return fuse.OK
}

// Release implements [fuse.RawFileSystem].
func (t *tree) Release(_ <-chan struct{}, input *fuse.ReleaseIn) { t.files.remove(input.Fh) }

// use returns an open file if its controller is still there.
func (t *tree) use(handle uint64) *file {
	f := t.files.get(handle)
	if f == nil || t.table.Controller(f.c.Index()) != f.c {
		return nil
	}
	return f
}

// Read implements [fuse.RawFileSystem]. A file read in pieces is that of the
// first piece.
func (t *tree) Read(_ <-chan struct{}, input *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f := t.use(input.Fh)
	if f == nil {
		return nil, fuse.ENODEV
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	text := f.text
	if input.Offset == 0 || text == nil {
		text = f.read()
		f.text = nil
		if len(text) > len(buf) || input.Offset > 0 {
			f.text = text
		}
	}
	text = text[min(input.Offset, uint64(len(text))):]
	return fuse.ReadResultData(text[:min(len(buf), len(text))]), fuse.OK
}

func (f *file) read() []byte {
	switch f.kind {
	case kindPorts:
		return append(strconv.AppendInt(nil, int64(f.c.Geometry().Ports()), 10), '\n')
	case kindStatus:
		return f.c.AppendStatus(nil)
	case kindStockStatus:
		return vhci.AppendStatus(nil, stockPorts(f.c))
	case kindStockOther:
		ports := stockPorts(f.c)
		return vhci.AppendStatus(nil, ports[len(ports)-1:])
	}
	return nil
}

// stockPorts returns the ports as the stock tools can bear them.
func stockPorts(c *controller.Controller) []vhci.Port {
	infos := c.Ports()
	ports := make([]vhci.Port, len(infos))
	for i, info := range infos {
		ports[i] = info.Port
		switch {
		case info.Status != vhci.StatusUsed:
		case info.Path == "", info.SockFD < 0: // not there, or about to go
			ports[i].Status = vhci.StatusNotAssigned
		default:
			ports[i].BusID = filepath.Base(info.Path)
		}
	}
	return ports
}

// Write implements [fuse.RawFileSystem].
func (t *tree) Write(cancel <-chan struct{}, input *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f := t.use(input.Fh)
	if f == nil {
		return 0, fuse.ENODEV
	}
	if input.Offset != 0 && !f.append {
		return 0, fuse.EINVAL
	}
	status := fuse.OK
	if f.kind == kindAttach {
		status = t.attach(cancel, f, int(input.Pid), data)
	} else if port, err := vhci.ParseDetach(data); err != nil {
		status = fuse.EINVAL
	} else if err := f.c.Detach(port); err != nil {
		status = statusOf(err)
	}
	if status != fuse.OK {
		return 0, status
	}
	return uint32(len(data)), fuse.OK
}
