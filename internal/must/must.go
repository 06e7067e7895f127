// Package must is what tests of several packages do or end: the error that has
// to be nil, the channel that has to be closed, the connection that has to be
// there, and that nothing is left.
//
// It imports the standard library only, so the tests of every package can use it.
// What needs an exporter is in usbiptest.
package must

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// Patience bounds what is waited for, so that a test fails and does not hang. No
// test passes or fails for a machine's speed.
const Patience = time.Minute

// OK ends the test if err is not nil.
func OK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Is ends the test unless err is target.
func Is(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

// Await waits for c to be closed.
func Await(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(Patience):
		t.Fatalf("%s: nothing after %v", what, Patience)
	}
}

// Become asks until the answer is yes. It is for what tells nobody when it
// happens.
func Become(t testing.TB, what string, ask func() bool) {
	t.Helper()
	for start := time.Now(); !ask(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > Patience {
			t.Fatalf("%s: not after %v", what, Patience)
		}
	}
}

// Connect returns both ends of a TCP connection, closed with the test.
func Connect(t testing.TB) (here, peer *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	OK(t, err)
	defer l.Close()
	here, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	OK(t, err)
	t.Cleanup(func() { here.Close() })
	peer, err = l.AcceptTCP()
	OK(t, err)
	t.Cleanup(func() { peer.Close() })
	return here, peer
}

// TempDir returns a directory whose name leaves room for those of sockets, which
// must be short.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	OK(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
