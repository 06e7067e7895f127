//go:build linux

package uevent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/thread"
)

// A Sender tells the listeners of a network namespace of events. It is safe for
// concurrent use.
type Sender struct {
	creds []byte // a control message

	mu     sync.Mutex
	fd     int    // -1 once closed
	seqnum uint64 // of the last event in the place of udev
}

// ErrHeard is the error of a NewSender for a namespace in which the kernel itself
// tells its events.
var ErrHeard = errors.New("the kernel tells its events in that network namespace")

// NewSender returns a sender for a network namespace, an open /proc/PID/ns/net.
// The user uid and the group gid, as we know them, must be root for the
// listeners, or they ignore what they hear. It needs CAP_SYS_ADMIN over the
// namespace. The error is ErrHeard if our own user namespace owns it.
func NewSender(netns *os.File, uid, gid uint32) (*Sender, error) {
	heard, err := Heard(netns)
	if err != nil {
		return nil, fmt.Errorf("send events: %w", err)
	}
	if heard {
		return nil, ErrHeard
	}
	fd, err := socketIn(netns)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("send events: %w", err)
	}
	return &Sender{
		creds: unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: uid, Gid: gid}),
		fd:    fd,
	}, nil
}

// Heard tells whether the kernel itself tells its events in a network namespace,
// an open /proc/PID/ns/net: it does in those that our own user namespace owns.
func Heard(netns *os.File) (bool, error) {
	heard, err := isOurs(netns)
	if err != nil {
		return false, fmt.Errorf("who owns the network namespace: %w", err)
	}
	return heard, nil
}

// isOurs tells whether our user namespace owns another namespace.
func isOurs(namespace *os.File) (bool, error) {
	fd, err := unix.IoctlRetInt(int(namespace.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false, err
	}
	owner := os.NewFile(uintptr(fd), "user namespace")
	defer owner.Close()
	x, err := owner.Stat()
	if err != nil {
		return false, err
	}
	y, err := os.Stat("/proc/self/ns/user")
	return err == nil && os.SameFile(x, y), err
}

// socketIn opens a socket in netns.
func socketIn(netns *os.File) (fd int, err error) {
	err = thread.Run(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace to send events: %w", err)
		}
		var err error
		fd, err = netlinkSocket()
		return err
	})
	return fd, err
}

// Kernel tells e as the kernel does.
func (s *Sender) Kernel(e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	message := make([]byte, unix.NLMSG_HDRLEN)
	message = appendKernel(message, e)
	binary.NativeEndian.PutUint32(message, uint32(len(message)))
	binary.NativeEndian.PutUint16(message[4:], unix.NLMSG_MIN_TYPE)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	if err := unix.Sendmsg(s.fd, message, s.creds, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}, 0); err != nil {
		return fmt.Errorf("send an event to the kernel: %w", err)
	}
	return s.acknowledged()
}

// acknowledged reads the answer, which is there when the message was sent.
func (s *Sender) acknowledged() error {
	var answer [unix.NLMSG_HDRLEN + 4 + maxMessage]byte
	n, _, err := unix.Recvfrom(s.fd, answer[:], unix.MSG_DONTWAIT)
	if err != nil {
		return fmt.Errorf("the kernel does not tell an event: %w", err)
	}
	if n < unix.NLMSG_HDRLEN+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("the kernel does not tell an event: it answers with %d bytes", n)
	}
	if errno := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); errno != 0 {
		return fmt.Errorf("the kernel does not tell an event: %w", syscall.Errno(-errno))
	}
	return nil
}

// Udev tells e as udev does that has dealt with it. That nobody listens is no
// error.
func (s *Sender) Udev(e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	s.seqnum++
	err := unix.Sendmsg(s.fd, appendUdev(nil, e, s.seqnum), s.creds, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groupUdev}, 0)
	if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("send an event in the place of udev: %w", err)
	}
	return nil
}

// Close closes the sender.
func (s *Sender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}
