//go:build linux

package benchtable

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	os.Exit(Main(m, map[string]Serve{"echo": func(conn net.Conn) error {
		Echo(conn, 3, func(request []byte) []byte { return append(request, '!') })
		return nil
	}}))
}

func TestEchoAnswersInOrder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Echo(theirs, 3, func(request []byte) []byte { return append(request, '!') })
	}()
	c := NewClient(t, ours, []byte("abc"), 4, 3)
	for i, request := range c.Requests() {
		request[0] = byte('0' + i)
	}
	for n := range 8 {
		c.Run(n)
	}
	if got := string(c.in); got != "0bc!1bc!2bc!" {
		t.Errorf("replies %q", got)
	}
	ours.Close()
	<-done
}

func TestRowsKeepTheLastOfEach(t *testing.T) {
	var r rows
	var text strings.Builder
	if r.print(&text); text.Len() != 0 {
		t.Errorf("a table of nothing: %q", &text)
	}
	r.add("BenchmarkA/b", "9", "9", "9.00", ">= 0.50")
	r.add("BenchmarkC", "3", "", "", "<= 4")
	r.add("BenchmarkA/b", "1µs", "2µs", "2.00", ">= 0.50")
	r.print(&text)
	const want = "\nmeasured   is    limit   ratio   aim\n" +
		"A/b        1µs   2µs     2.00    >= 0.50\n" +
		"C          3                     <= 4\n\n"
	if got := text.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// BenchmarkEcho is a server beside itself.
func BenchmarkEcho(b *testing.B) {
	Pin(b)
	subject, limit := NewClient(b, Server(b, "echo"), []byte("abc"), 4, 1), NewClient(b, Server(b, "echo"), []byte("abc"), 4, 1)
	Compare(b, 1, subject.Run, limit.Run)
}
