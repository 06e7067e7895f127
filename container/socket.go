//go:build linux

package container

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const notOpen = "not an open descriptor: write the number of a connected socket"

// CheckSocket tells whether fd is a socket that can carry USB/IP: a connected
// stream over IPv4, IPv6 or Unix. If not, the error is a [SocketError] with
// EINVAL. The kernel's attach file asks for a stream only, and takes a socket
// that is not connected.
func CheckSocket(fd int) error {
	if reason := unfit(fd); reason != "" {
		return &SocketError{unix.EINVAL, fmt.Sprintf("descriptor %d", fd), reason}
	}
	return nil
}

func unfit(fd int) string {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if errors.Is(err, unix.EBADF) {
		return notOpen
	}
	if err != nil {
		return "not a socket: write the number of a connected socket"
	}
	if domain != unix.AF_INET && domain != unix.AF_INET6 && domain != unix.AF_UNIX {
		return fmt.Sprintf("a socket of address family %d: use TCP or a Unix socket", domain)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM {
		return "not a stream socket: use TCP or a Unix stream"
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening != 0 {
		return "a listening socket: accept a connection and use that"
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return "not connected: connect it and import the device before attaching"
	}
	return ""
}

// adopt makes a connection of fd, which it closes or owns from now on.
func adopt(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if err := CheckSocket(fd); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use a socket taken over: %w", err)
	}
	return conn, nil
}

// SendSocket sends payload, at least a byte, and with it a duplicate of the
// socket s, over c, which must be of network "unixpacket": only there is a
// payload received as it was sent. The socket must pass [CheckSocket]. The
// sender may close s as soon as SendSocket returns. Deadlines are those of c.
func SendSocket(c *net.UnixConn, payload []byte, s syscall.Conn) error {
	if err := checkCarrier(c); err != nil {
		return err
	}
	if len(payload) == 0 {
		return errors.New("send a socket: an empty payload cannot carry one")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return fmt.Errorf("send a socket: %w", err)
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		if sent = CheckSocket(int(fd)); sent == nil {
			_, _, sent = c.WriteMsgUnix(payload, unix.UnixRights(int(fd)), nil)
		}
	})
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("send a socket: %w", err)
	}
	return nil
}

// ReceiveSocket receives what [SendSocket] sent: a payload of at most max bytes
// and exactly one socket, which must pass [CheckSocket]. If anything else comes,
// all that came is closed, and c can be used further. io.EOF is wrapped if the
// peer has closed c.
func ReceiveSocket(c *net.UnixConn, max int) ([]byte, net.Conn, error) {
	if err := checkCarrier(c); err != nil {
		return nil, nil, err
	}
	if max <= 0 {
		return nil, nil, fmt.Errorf("receive a socket: no room for a payload: limit %d", max)
	}
	payload := make([]byte, max)
	// Room for a second descriptor, so that it is seen; the kernel drops
	// what does not fit. Credentials come along if c asked for them.
	control := make([]byte, unix.CmsgSpace(2*4)+unix.CmsgSpace(unix.SizeofUcred))
	n, controls, flags, _, err := c.ReadMsgUnix(payload, control)
	fds, perr := descriptors(control[:controls])
	err = errors.Join(err, perr)
	switch {
	case err != nil:
	case flags&unix.MSG_TRUNC != 0:
		err = fmt.Errorf("the payload is longer than %d bytes", max)
	case flags&unix.MSG_CTRUNC != 0 && len(fds) == 0:
		err = errors.New("its descriptor was lost: raise the limit of open files")
	case len(fds) == 0:
		err = &SocketError{unix.EINVAL, "received message", "carries no socket: send exactly one"}
	case flags&unix.MSG_CTRUNC != 0 || len(fds) > 1:
		err = &SocketError{unix.EINVAL, "received message", "carries more than one socket: send exactly one"}
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, nil, fmt.Errorf("receive a socket: %w", err)
	}
	conn, err := adopt(fds[0])
	if err != nil {
		return nil, nil, fmt.Errorf("receive a socket: %w", named(err, "received descriptor"))
	}
	return payload[:n], conn, nil
}

func checkCarrier(c *net.UnixConn) error {
	if network := c.LocalAddr().Network(); network != "unixpacket" {
		return fmt.Errorf("hand over a socket: the connection is %s: use unixpacket", network)
	}
	return nil
}

// descriptors returns all descriptors that came with a message.
func descriptors(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	var fds []int
	for i := range messages {
		h := messages[i].Header
		if h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_RIGHTS {
			continue
		}
		more, perr := unix.ParseUnixRights(&messages[i])
		err = errors.Join(err, perr)
		fds = append(fds, more...)
	}
	return fds, err
}
