//go:build linux

package kernel

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/usbns/usbns/uevent"
)

// A notifier wakes those that wait for the kernel to get on, at each uevent.
type notifier struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next uevent

	listener *uevent.Listener // nil until it is needed
	done     chan struct{}
}

func newNotifier() *notifier { return &notifier{next: make(chan struct{})} }

// start listens to the kernel.
func (n *notifier) start() error {
	l, err := uevent.Listen()
	if err != nil {
		return fmt.Errorf("wait for devices: %w", err)
	}
	n.listener, n.done = l, make(chan struct{})
	go n.read()
	return nil
}

func (n *notifier) close() {
	if n.listener != nil {
		n.listener.Close()
		<-n.done
	}
}

// read looks no further than whom an event is about: what it means is read from
// the files.
func (n *notifier) read() {
	defer close(n.done)
	for {
		e, err := n.listener.Receive()
		lost := errors.Is(err, uevent.ErrLost) // which is as good a reason to look
		switch {
		case err != nil && !lost:
			return
		case !lost && !strings.Contains(e.DevPath, "/vhci_hcd."):
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
