//go:build linux

package view

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Listen makes a socket at a name below the container's /dev, for who owns the
// nodes and nobody else. It stays there when it is closed, until another View of
// the container is opened.
func (v *View) Listen(network, name string) (l *net.UnixListener, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.devices == nil {
		return nil, os.ErrClosed
	}
	err = inDev(v.dev, name, func(dir int, base string) error {
		return onThread(func() error {
			unix.Umask(0o117) // of the thread alone: 0660
			made, err := new(net.ListenConfig).Listen(context.Background(), network, fmt.Sprintf("/proc/self/fd/%d/%s", dir, base))
			if err != nil {
				return err
			}
			l = made.(*net.UnixListener)
			l.SetUnlinkOnClose(false) // the name is another's by then
			if err := v.give(dir, base, unix.S_IFSOCK); err != nil {
				l.Close()
				return err
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("make a socket in the container: %w", err)
	}
	return l, nil
}
