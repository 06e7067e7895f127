//go:build linux

package escape

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

var listenCases = []Case{
	{
		Name: "uevents", waits: true, try: (*attempt).listenUevents,
		Why: "the kernel tells of every device that comes, goes or changes",
	},
	{
		Name: "uevents-netns", waits: true, unshare: unix.CLONE_NEWNET, try: (*attempt).listenUevents,
		Why: "a new network namespace of the host's user namespace hears the kernel as well",
	},
	{
		Name: "uevents-userns", waits: true, unshare: unix.CLONE_NEWNET | unix.CLONE_NEWUSER, try: (*attempt).listenUevents,
		Why: "so might one of a new user namespace",
	},
}

// listenUevents hears the kernel (group 1) and udev (group 2). Whoever runs the
// suite makes events meanwhile, of both devices.
func (a *attempt) listenUevents() (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return "", fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 | 2}); err != nil {
		return "", fmt.Errorf("bind: %w", err)
	}
	end := time.Now().Add(attention)
	buf := make([]byte, 64<<10)
	heard := 0
	for left := time.Until(end); left > 0; left = time.Until(end) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) || n == 0 {
			continue
		}
		if err != nil {
			return "", err
		}
		heard++
		if n, err = unix.Read(fd, buf); errors.Is(err, unix.ENOBUFS) {
			continue // more came than we could take
		}
		if err != nil {
			return "", fmt.Errorf("read uevents: %w", err)
		}
		if word := a.target().named(string(buf[:n])); word != "" {
			return "an event tells " + word, nil
		}
	}
	return "", fmt.Errorf("%d events do not tell", heard)
}
