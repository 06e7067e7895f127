package emulate

import (
	"context"
	"sync"

	"github.com/usbns/usbns/usb"
)

// A task is what a device was told to do, as long as the host has not done its
// part. There is one at a time; the next one waits for its turn.
type task struct {
	dev  *Device
	turn chan struct{} // holds the token of the one who waits for the host

	mu   sync.Mutex // of the device that has tasks: its handlers take it
	done chan error // of the one who waits, nil if none does
}

func newTask() task { return task{turn: make(chan struct{}, 1)} }

// run calls start, wakes an endpoint, and waits until end is called. When that
// takes longer than ctx or the device lasts, it calls abandon. Both are called
// with mu held.
func (k *task) run(ctx context.Context, start func() error, a usb.Address, abandon func()) error {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-k.dev.Gone():
		return usb.ErrGone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done, err := k.begin(start)
	if err != nil {
		return err
	}
	k.dev.Wake(a)
	select {
	case err = <-done:
		return err
	case <-k.dev.Gone():
		err = usb.ErrGone
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done == nil { // it was done after all
		return <-done
	}
	k.done = nil
	abandon()
	return err
}

func (k *task) begin(start func() error) (<-chan error, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.dev.Gone():
		return nil, usb.ErrGone
	default:
	}
	if k.dev.Configuration() == 0 {
		return nil, ErrNotConfigured
	}
	if err := start(); err != nil {
		return nil, err
	}
	k.done = make(chan error, 1)
	return k.done, nil
}

// end tells the one who waits, if there is one. It is called with mu held.
func (k *task) end(err error) {
	if k.done != nil {
		k.done <- err
		k.done = nil
	}
}
