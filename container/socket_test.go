//go:build linux

package container

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
)

type badDescriptor struct {
	fd   int
	text string
}

func badDescriptors(t *testing.T) map[string]badDescriptor {
	t.Helper()
	keep := func(fd int, err error) int {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	socket := func(domain, kind int) int { return keep(unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)) }
	listen := func(fd int, at unix.Sockaddr) int {
		if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, 1)); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	datagram, _ := pair(t, unix.SOCK_DGRAM)
	packet, _ := pair(t, unix.SOCK_SEQPACKET)
	udp := socket(unix.AF_INET, unix.SOCK_DGRAM)
	if err := unix.Connect(udp, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	return map[string]badDescriptor{
		"negative":         {-1, "not an open descriptor"},
		"not open":         {1 << 20, "not an open descriptor"},
		"file":             {keep(unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)), "not a socket"},
		"directory":        {keep(unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)), "not a socket"},
		"event":            {keep(unix.Eventfd(0, unix.EFD_CLOEXEC)), "not a socket"},
		"netlink":          {socket(unix.AF_NETLINK, unix.SOCK_RAW), "address family 16"},
		"udp":              {udp, "not a stream"},
		"unix datagram":    {datagram, "not a stream"},
		"unix packet":      {packet, "not a stream"},
		"tcp unconnected":  {socket(unix.AF_INET, unix.SOCK_STREAM), "not connected"},
		"unix unconnected": {socket(unix.AF_UNIX, unix.SOCK_STREAM), "not connected"},
		"tcp listening":    {listen(socket(unix.AF_INET, unix.SOCK_STREAM), &unix.SockaddrInet4{}), "listening"},
		"unix listening":   {listen(socket(unix.AF_UNIX, unix.SOCK_STREAM), &unix.SockaddrUnix{Name: ""}), "listening"},
	}
}

func TestCheckSocketRefuses(t *testing.T) {
	for name, bad := range badDescriptors(t) {
		t.Run(name, func(t *testing.T) { wantRefused(t, CheckSocket(bad.fd), unix.EINVAL, bad.text) })
	}
}

func TestCheckSocketAccepts(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": "@"} {
		t.Run(network, func(t *testing.T) {
			checkLeaks(t)
			l, err := net.Listen(network, address)
			if err != nil {
				t.Skip("this machine has no such sockets: ", err)
			}
			defer l.Close()
			c, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			raw, _ := c.(interface {
				File() (*os.File, error)
			}).File()
			defer raw.Close()
			if err := CheckSocket(int(raw.Fd())); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSendReceiveSocket(t *testing.T) {
	checkLeaks(t)
	from, to := conns(t, unix.SOCK_SEQPACKET)
	sock, peer := conns(t, unix.SOCK_STREAM)
	if err := SendSocket(from, []byte("port 3"), sock); err != nil {
		t.Fatal(err)
	}
	payload, got, err := ReceiveSocket(to, 6)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	got.Write([]byte("x"))
	if n, err := peer.Read(make([]byte, 2)); string(payload) != "port 3" || n != 1 || err != nil {
		t.Errorf("payload %q, peer reads %d bytes, %v", payload, n, err)
	}
}

func TestReceiveSocketRefuses(t *testing.T) {
	good, other := pair(t, unix.SOCK_STREAM)
	bad := badDescriptors(t)["udp"].fd
	many := make([]int, 200)
	for i := range many {
		many[i] = good
	}
	for name, test := range map[string]struct {
		payload string
		fds     []int
		text    string
	}{
		"none":         {"x", nil, "carries no socket"},
		"two":          {"x", []int{good, other}, "more than one"},
		"many":         {"x", many, "more than one"},
		"long payload": {"12345", []int{good}, "longer than 4 bytes"},
		"not a stream": {"x", []int{bad}, "received descriptor: not a stream"},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			from, to := conns(t, unix.SOCK_SEQPACKET)
			raw, _ := from.SyscallConn()
			raw.Control(func(fd uintptr) {
				if err := unix.Sendmsg(int(fd), []byte(test.payload), unix.UnixRights(test.fds...), nil, 0); err != nil {
					t.Fatal(err)
				}
			})
			before := len(must.Descriptors(t))
			_, _, err := ReceiveSocket(to, 4)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %q", err, test.text)
			}
			if after := len(must.Descriptors(t)); after != before {
				t.Errorf("%d descriptors stay open", after-before)
			}
		})
	}
}

func TestReceiveSocketEnd(t *testing.T) {
	from, to := conns(t, unix.SOCK_SEQPACKET)
	raw, _ := from.SyscallConn()
	raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	if _, _, err := ReceiveSocket(to, 4); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want %v", err, io.EOF)
	}
}

func TestHandOverRefusesMisuse(t *testing.T) {
	packet, _ := conns(t, unix.SOCK_SEQPACKET)
	stream, _ := conns(t, unix.SOCK_STREAM)
	wantRefused(t, SendSocket(packet, []byte("x"), packet), unix.EINVAL, "not a stream")
	if err := SendSocket(packet, nil, stream); err == nil {
		t.Error("empty payload is sent")
	}
	if err := SendSocket(stream, []byte("x"), stream); err == nil {
		t.Error("sent over a stream")
	}
	if _, _, err := ReceiveSocket(stream, 1); err == nil {
		t.Error("received over a stream")
	}
	if _, _, err := ReceiveSocket(packet, 0); err == nil {
		t.Error("received without room")
	}
}
