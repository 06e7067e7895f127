//go:build linux

package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A notifier wakes those that wait for the kernel to get on, at each uevent.
type notifier struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next uevent
	f    *os.File
	done chan struct{}
}

func newNotifier() *notifier { return &notifier{next: make(chan struct{})} }

// start listens to the kernel.
func (n *notifier) start() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listen to uevents: %w", err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		f.Close()
		return fmt.Errorf("listen to uevents: %w", err)
	}
	n.f, n.done = f, make(chan struct{})
	go n.read()
	return nil
}

func (n *notifier) close() {
	if n.f != nil {
		n.f.Close()
		<-n.done
	}
}

// read looks no further than whom an event is about: what it means is read from
// the files.
func (n *notifier) read() {
	defer close(n.done)
	b := make([]byte, 512) // the path comes first
	for {
		// With ENOBUFS some were lost, which is as good a reason to look.
		k, err := n.f.Read(b)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		if err == nil && !bytes.Contains(b[:k], []byte("/vhci_hcd.")) {
			continue
		}
		n.mu.Lock()
		close(n.next)
		n.next = make(chan struct{})
		n.mu.Unlock()
	}
}

// A wait is one who waits.
type wait struct {
	n     *notifier
	event chan struct{}
	pause time.Duration
}

const (
	firstPause = 5 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// wait is called before the first look at what is waited for.
func (n *notifier) wait() *wait {
	w := &wait{n: n, pause: firstPause}
	w.arm()
	return w
}

func (w *wait) arm() {
	w.n.mu.Lock()
	w.event = w.n.next
	w.n.mu.Unlock()
}

// next waits for a reason to look again: a uevent, or some time, since no event
// tells of a port's status. It returns false if a or b is closed.
func (w *wait) next(a, b <-chan struct{}) bool {
	timer := time.NewTimer(w.pause)
	defer timer.Stop()
	select {
	case <-w.event:
	case <-timer.C:
		w.pause = min(2*w.pause, lastPause)
	case <-a:
		return false
	case <-b:
		return false
	}
	w.arm()
	return true
}
