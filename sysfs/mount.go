//go:build linux

package sysfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/internal/thread"
)

// Type is the type of the file system in a table of mounts.
const Type = "fuse.usbns"

// Options say how a tree is served.
type Options struct {
	// Table has the controllers.
	Table *controller.Table
	// Identify is container.IdentifyCaller: it fixes the process of the thread
	// tid, which waits meanwhile.
	Identify func(tid int) (Caller, error)
	// Allowed, if not nil, decides whether a process may attach to a controller.
	// Its error wraps the number to give back, or it is EPERM.
	Allowed func(c *controller.Controller, pid int) error
	// Log gets a line for each refused attach.
	Log *slog.Logger
}

// A Tree is mounted until Close.
type Tree struct {
	dir    string
	fd     int
	tree   *tree
	cancel context.CancelFunc // ends attempts to attach
	served chan struct{}      // closed when no request is left
}

// Mount mounts a tree on dir, which it makes if need be, in place of one that a
// dead process left there. It needs CAP_SYS_ADMIN and /dev/fuse.
func Mount(dir string, o Options) (*Tree, error) {
	m, err := newMint()
	if err != nil {
		return nil, fmt.Errorf("make a secret: %w", err)
	}
	if err := prepare(dir); err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.Background())
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), table: o.Table, mint: m,
		attacher: attacher{life: life, identify: o.Identify, allowed: o.Allowed, log: o.Log},
	}
	fd, err := mount(dir)
	if err != nil {
		cancel()
		return nil, err
	}
	server, err := fuse.NewServer(t, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		MaxWrite: fileSize, DisableXAttrs: true, DisableReadDirPlus: true, DisableSplice: true,
		// It tells of requests whose callers are gone.
		Logger: log.New(io.Discard, "", 0),
		PanicHandler: func(reason any) fuse.Status {
			o.Log.Error("control files: a request panicked", "reason", reason, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	})
	if err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("serve the control files on %s: %w", dir, err), unmount(dir, 0))
	}
	f := &Tree{dir: dir, fd: fd, tree: t, cancel: cancel, served: make(chan struct{})}
	go func() {
		defer close(f.served)
		server.Serve()
	}()
	if err := thread.RunWithout(fd, func() error { return refusePoll(dir) }); err != nil {
		return nil, errors.Join(fmt.Errorf("try the control files on %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// refusePoll lets the kernel learn that the files cannot be polled. Otherwise
// each Go program that opens one asks, in its runtime, where a wait for the
// answer holds up other goroutines: for good, if those are to answer.
func refusePoll(dir string) error {
	// The server of go-fuse has this file for that.
	fd, err := unix.Open(filepath.Join(dir, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// Dir returns the directory of a controller that has its index in its name.
func (f *Tree) Dir(c *controller.Controller) string {
	return filepath.Join(f.dir, f.tree.mint.path(c, kindDir))
}

// NamelessDir returns the directory of a controller that is for containers. The
// name ends with the controller and with the Tree.
func (f *Tree) NamelessDir(c *controller.Controller) string {
	return filepath.Join(f.dir, f.tree.mint.path(c, kindNamelessDir))
}

// Server returns the descriptor over which this process answers, for
// container.BindController.
func (f *Tree) Server() int { return f.fd }

// Done is closed when nothing is served any more: after Close, or when somebody
// with CAP_SYS_ADMIN has unmounted by force what is mounted here or bound
// elsewhere.
func (f *Tree) Done() <-chan struct{} { return f.served }

// Close ends all requests and the mount. What is bound elsewhere fails with
// ENOTCONN from then on. It can be called again.
func (f *Tree) Close() error {
	f.cancel()
	// Forced, it ends the connection, which binds would keep open.
	err := unmount(f.dir, unix.MNT_FORCE)
	if err == nil {
		<-f.served
	}
	f.tree.files.close()
	select {
	case <-f.served: // whoever unmounted it
		return nil
	default:
		return err
	}
}

// prepare makes dir a place to mount on.
func prepare(dir string) error {
	for {
		// Unlike stat it always asks.
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); !errors.Is(err, unix.ENOTCONN) {
			break
		}
		if err := unmount(dir, 0); err != nil {
			return fmt.Errorf("the control files of a dead daemon: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make a place for the control files: %w", err)
	}
	return nil
}

// mount returns the FUSE descriptor of a new file system on dir.
func mount(dir string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions,max_read=%d",
		fd, os.Geteuid(), os.Getegid(), fileSize)
	if err := unix.Mount("usbns", dir, Type, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount the control files on %s: %w", dir, err)
	}
	return fd, nil
}

func unmount(dir string, flags int) error {
	if err := unix.Unmount(dir, flags|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return nil
}
