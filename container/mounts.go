//go:build linux

package container

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/thread"
)

// controllerDir is the only directory that the stock tools look at.
const controllerDir = "/sys/devices/platform/vhci_hcd.0"

// A Binding says which files BindController binds where.
type Binding struct {
	// Dir is the directory of a controller, see sysfs.Tree.NamelessDir.
	Dir string
	// Server is the FUSE descriptor of this process that serves Dir, see
	// sysfs.Tree.Server, or -1.
	Server int
	// Namespace is the mount namespace, as in /proc/PID/ns/mnt; nil is that of
	// this process.
	Namespace *os.File
	// Root is the container's root there, as a path, if it is not yet that of the
	// namespace. See package hook.
	Root string
}

// BindController binds the files of a controller over those of vhci_hcd.0: all
// that are there of attach, detach, nports, status, status.1 and so on. If
// anything fails none of them stays. It takes the place of an earlier binding,
// whose server may be dead; the kernel's files are not to be seen meanwhile.
//
// The mount of /sys there must not be shared with this process's namespace. A
// container that may unmount what is mounted in its namespace can unmount the
// files: they hide the kernel's, they do not protect them.
func BindController(b Binding) error {
	if err := thread.RunWithout(b.Server, b.bind); err != nil {
		return fmt.Errorf("bind the files of a controller: %w", err)
	}
	return nil
}

// bind runs in a thread with descriptors of its own.
func (b *Binding) bind() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns asks for it
		return fmt.Errorf("unshare a thread: %w", err)
	}
	// In a container with a pid namespace of its own, /proc does not know us.
	self, err := unix.Open("/proc/thread-self", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/proc/thread-self", Err: err}
	}
	ours, err := mounts(self)
	if err != nil {
		return err
	}
	_, names, err := openTarget()
	if err != nil {
		return err
	}
	// Only what is mounted in the thread's namespace can be cloned.
	var trees []tree
	for _, name := range names {
		t, err := cloneFile(b.Dir, name)
		if err != nil {
			return err
		}
		trees = append(trees, t)
	}
	if b.Namespace == nil {
		return replace(trees, ours)
	}
	if err := unix.Setns(int(b.Namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the mount namespace: %w", err)
	}
	if b.Root != "" {
		if err := unix.Chroot(b.Root); err != nil {
			return &fs.PathError{Op: "chroot", Path: b.Root, Err: err}
		}
	}
	theirs, err := mounts(self)
	if err != nil {
		return err
	}
	if err := separate(ours, theirs); err != nil {
		return err
	}
	return replace(trees, theirs)
}

// openTarget returns the directory and which of its files to cover.
func openTarget() (dir int, names []string, err error) {
	fail := func(err error) (int, []string, error) {
		return -1, nil, &fs.PathError{Op: "open", Path: controllerDir, Err: err}
	}
	dir, err = unix.Openat2(unix.AT_FDCWD, controllerDir, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return fail(fmt.Errorf("%w: load vhci-hcd, and mount sysfs", err))
	}
	if err != nil {
		return fail(err)
	}
	var stat unix.Statfs_t
	if err := unix.Fstatfs(dir, &stat); err != nil {
		return fail(err)
	}
	if stat.Type != unix.SYSFS_MAGIC {
		return fail(errors.New("not on a sysfs, where the stock tools want it"))
	}
	names = []string{"nports", "status"}
	for buf := make([]byte, 4096); ; {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return fail(err)
		}
		if n == 0 {
			break
		}
		_, _, found := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range found {
			if strings.HasPrefix(name, "status.") {
				names = append(names, name)
			}
		}
	}
	// attach comes last: a container that can attach sees what it does.
	return dir, append(names, "detach", "attach"), nil
}

// separate makes sure that what is mounted on there's /sys is not on ours as
// well.
func separate(ours, there []*mountinfo.Info) error {
	var sys *mountinfo.Info
	for _, m := range there {
		if m.Mountpoint == "/" || m.Mountpoint == controllerDir || strings.HasPrefix(controllerDir, m.Mountpoint+"/") {
			sys = m // the last is on top
		}
	}
	if sys == nil {
		return errors.New("the namespace has no /sys")
	}
	group := sharedGroup(sys)
	if group == "" {
		return nil
	}
	for _, m := range ours {
		if sharedGroup(m) == group {
			return fmt.Errorf("%s of the container is shared with ours: make it private or a slave", sys.Mountpoint)
		}
	}
	return nil
}

func sharedGroup(m *mountinfo.Info) string {
	for field := range strings.FieldsSeq(m.Optional) {
		if strings.HasPrefix(field, "shared:") {
			return field
		}
	}
	return ""
}

// A tree is a file that is cloned, and where it goes.
type tree struct {
	fd   int
	name string
}

func cloneFile(dir, name string) (tree, error) {
	from := filepath.Join(dir, name)
	if strings.HasPrefix(name, "status.") {
		from = filepath.Join(dir, "status.1")
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	}
	if err != nil {
		return tree{}, &fs.PathError{Op: "clone", Path: from, Err: err}
	}
	return tree{fd, name}, nil
}

// replace mounts all trees or none over the files of the directory.
func replace(trees []tree, there []*mountinfo.Info) (err error) {
	dir, _, err := openTarget()
	if err != nil {
		return err
	}
	if err := unix.Fchdir(dir); err != nil { // there is no umountat
		return &fs.PathError{Op: "chdir", Path: controllerDir, Err: err}
	}
	var done []string
	defer func() {
		if err == nil {
			return
		}
		for _, name := range slices.Backward(done) {
			err = errors.Join(err, detach(name))
		}
	}()
	for _, t := range trees {
		// The lowest of the old stays, since without it the kernel's file would be
		// there for a moment. EINVAL: it is locked, as are those below.
		for range layers(there, t.name) - 1 {
			if err := detach(t.name); errors.Is(err, unix.EINVAL) {
				break
			} else if err != nil {
				return err
			}
		}
		if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return &fs.PathError{Op: "mount on", Path: filepath.Join(controllerDir, t.name), Err: err}
		}
		done = append(done, t.name)
	}
	return nil
}

// layers counts what is mounted on a file of the controller.
func layers(there []*mountinfo.Info, name string) int {
	n := 0
	for _, m := range there {
		if m.Mountpoint == filepath.Join(controllerDir, name) {
			n++
		}
	}
	return n
}

func detach(name string) error {
	if err := unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "unmount", Path: filepath.Join(controllerDir, name), Err: err}
	}
	return nil
}

// mounts returns the mounts of the thread whose directory in /proc is self, below
// its root. It keeps clear of the runtime's poller, which knows nothing of the
// thread's own descriptors.
func mounts(self int) ([]*mountinfo.Info, error) {
	fail := func(err error) ([]*mountinfo.Info, error) {
		return nil, &fs.PathError{Op: "read", Path: "/proc/thread-self/mountinfo", Err: err}
	}
	fd, err := unix.Openat(self, "mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	var text bytes.Buffer
	for buf := make([]byte, 1<<16); ; {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return fail(err)
		}
		if n == 0 {
			break
		}
		text.Write(buf[:n])
	}
	infos, err := mountinfo.GetMountsFromReader(&text, nil)
	if err != nil {
		return fail(err)
	}
	return infos, nil
}
