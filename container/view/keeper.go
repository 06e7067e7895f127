//go:build linux

package view

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/uevent"
)

// A Keeper keeps the views of all containers up to date: it hears the kernel's
// events, and of the end of containers.
type Keeper struct {
	log    *slog.Logger
	events *uevent.Listener
	ends   *os.File // inotify
	done   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	views  map[*View]struct{}
	watch  map[int32]*watch // by inotify's number
}

type watch struct {
	cgroup string
	ended  func()
}

// NewKeeper returns a keeper without views.
func NewKeeper(log *slog.Logger) (*Keeper, error) {
	events, err := uevent.Listen()
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		events.Close()
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	k := &Keeper{
		log: log, events: events, ends: os.NewFile(uintptr(fd), "inotify"),
		views: make(map[*View]struct{}), watch: make(map[int32]*watch),
	}
	k.done.Go(k.hear)
	k.done.Go(k.waitEnds)
	return k, nil
}

// Close ends the keeping. Views stay open.
func (k *Keeper) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	err := errors.Join(k.events.Close(), k.ends.Close())
	k.done.Wait()
	return err
}

// Keep keeps v up to date until Drop.
func (k *Keeper) Keep(v *View) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.views[v] = struct{}{}
}

// Drop ends a Keep.
func (k *Keeper) Drop(v *View) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.views, v)
}

// Sync brings all views up to date. It is called before a device gets numbers,
// so that no other container is still allowed those.
func (k *Keeper) Sync() error {
	var errs []error
	for _, v := range k.list() {
		errs = append(errs, v.Sync())
	}
	return errors.Join(errs...)
}

func (k *Keeper) list() []*View {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]*View, 0, len(k.views))
	for v := range k.views {
		list = append(list, v)
	}
	return list
}

func (k *Keeper) hear() {
	for {
		e, err := k.events.Receive()
		lost := errors.Is(err, uevent.ErrLost)
		if err != nil && !lost {
			return
		}
		for _, v := range k.list() {
			if !lost && !v.Has(e.DevPath) {
				continue
			}
			if err := v.Sync(); err != nil {
				k.log.Error("a container does not see a device as it is", "container", v.cfg.Cgroup, "reason", err)
			}
		}
	}
}

// WhenEmpty calls ended, once, when no process is left in a cgroup, or at once if
// there is none.
func (k *Keeper) WhenEmpty(cgroup string, ended func()) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return os.ErrClosed
	}
	file := path.Join(cgroup, "cgroup.events")
	number, err := k.inotify(func(fd int) (int, error) { return unix.InotifyAddWatch(fd, file, unix.IN_MODIFY) })
	if err != nil {
		return &os.PathError{Op: "watch", Path: file, Err: err}
	}
	k.watch[int32(number)] = &watch{cgroup, ended}
	if empty(cgroup) {
		k.end(int32(number))
	}
	return nil
}

// end is called with mu held.
func (k *Keeper) end(number int32) {
	w := k.watch[number]
	delete(k.watch, number)
	_, _ = k.inotify(func(fd int) (int, error) { return unix.InotifyRmWatch(fd, uint32(number)) }) // it may be gone
	k.done.Go(w.ended)
}

func (k *Keeper) inotify(f func(fd int) (int, error)) (n int, err error) {
	raw, err := k.ends.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = f(int(fd)) }); cerr != nil {
		return 0, cerr
	}
	return n, err
}

// empty tells whether no process is in a cgroup that is gone or not.
func empty(cgroup string) bool {
	text, err := os.ReadFile(path.Join(cgroup, "cgroup.events"))
	return err != nil || strings.Contains(string(text), "populated 0\n")
}

func (k *Keeper) waitEnds() {
	buffer := make([]byte, 4096)
	for {
		n, err := k.ends.Read(buffer)
		if err != nil {
			return
		}
		k.mu.Lock()
		for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			number := int32(binary.NativeEndian.Uint32(rest))
			rest = rest[min(unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(rest[12:])), len(rest)):]
			if w := k.watch[number]; w != nil && !k.closed && empty(w.cgroup) {
				k.end(number)
			}
		}
		k.mu.Unlock()
	}
}
