package controller

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// DefaultUserTimeout is how long a device may take to get ready.
const DefaultUserTimeout = 5 * time.Second

// User is the driver that keeps devices in user space, in this process. The
// devices are in their first configuration. The zero User is ready for use.
type User struct {
	// Timeout is for all that is asked of a device until it is attached. An
	// earlier deadline of the context counts as well. Default:
	// DefaultUserTimeout.
	Timeout time.Duration
	// Import is for the devices that come as a connection. Its Descriptors must
	// be nil.
	Import usbip.ImportOptions
}

// Attach implements [Driver].
func (u *User) Attach(ctx context.Context, p Plug) (Attachment, error) {
	timeout := cmp.Or(u.Timeout, DefaultUserTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("%w: device is not ready after %v", os.ErrDeadlineExceeded, timeout))
	defer cancel()

	if p.Device != nil {
		a := &userAttachment{p.Device}
		if err := a.start(ctx, p); err != nil {
			return nil, err
		}
		return a, nil
	}
	imp, err := usbip.NewImporter(ctx, p.Conn, p.DevID, p.Speed, &u.Import)
	if err != nil {
		return nil, err
	}
	// A peer that does not answer cancellations either must not hold this up.
	stop := context.AfterFunc(ctx, func() { imp.Close() })
	a := &userAttachment{imp}
	err = a.start(ctx, p)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		imp.Close()
		return nil, err
	}
	return a, nil
}

// Restore implements [Driver]. There is never anything to restore: devices end
// with the process.
func (u *User) Restore(context.Context, Plug, []byte) (Attachment, error) {
	return nil, fmt.Errorf("%w: a device in user space ends with its process", ErrNotRestored)
}

type userAttachment struct{ dev usb.Device }

func (a *userAttachment) start(ctx context.Context, p Plug) error {
	if p.Judge != nil {
		if err := p.Judge(a.dev.Descriptors()); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	first := a.dev.Descriptors().Configurations()[0].Value
	if _, err := usb.ControlTransfer(ctx, a.dev, usb.SetConfiguration(first), nil); err != nil {
		return fmt.Errorf("set configuration %d: %w", first, err)
	}
	if p.Ready == nil {
		return nil
	}
	if err := p.Ready(a); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return nil
}

func (a *userAttachment) Descriptors() *usb.Descriptors { return a.dev.Descriptors() }
func (a *userAttachment) Device() usb.Device            { return a.dev }
func (a *userAttachment) Path() string                  { return "" }
func (a *userAttachment) Saved() []byte                 { return nil }
func (a *userAttachment) Done() <-chan struct{}         { return a.dev.Gone() }

func (a *userAttachment) Detach() {
	a.dev.Close()
	<-a.dev.Gone()
}

func (a *userAttachment) Leave() { a.Detach() }

func (a *userAttachment) Err() error {
	if dev, ok := a.dev.(interface{ Err() error }); ok {
		return dev.Err()
	}
	return nil
}
