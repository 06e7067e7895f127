//go:build unix

package usbip

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// rawConn reads and writes a socket without ever waiting in the kernel: on Linux,
// whatever mode the socket is in, since others may share it and change that. Its
// functions are made once, so that using them does not allocate.
type rawConn struct {
	l  *link
	rc syscall.RawConn

	readFunc, writeFunc func(fd uintptr) bool

	// Of the reader.
	into    []byte // nil for link.in
	n       int
	readErr error

	// Of whoever set link.writing.
	writing  *buffer
	end      int // of what is to be written of it
	more     bool
	wait     bool
	writeErr error
}

// init leaves r unusable for connections that are more than a socket: TLS,
// pipes, and wrappers that want to see what passes.
func (r *rawConn) init(l *link) {
	var rc syscall.RawConn
	var err error
	switch c := l.conn.(type) {
	case *net.TCPConn:
		rc, err = c.SyscallConn()
	case *net.UnixConn:
		rc, err = c.SyscallConn()
	default:
		return
	}
	if err != nil {
		return
	}
	r.l, r.rc = l, rc
	r.readFunc, r.writeFunc = r.tryRead, r.tryWrite
}

func (r *rawConn) ok() bool { return r.rc != nil }

// fill waits for input and reads it into link.in, which it takes from the pool
// only when there is some.
func (r *rawConn) fill() (err error) {
	r.l.w, err = r.read(nil)
	return err
}

// read waits for input, as a net.Conn does.
func (r *rawConn) read(p []byte) (int, error) {
	r.into, r.n, r.readErr = p, 0, nil
	if err := r.rc.Read(r.readFunc); err != nil {
		return 0, err
	}
	return r.n, r.readErr
}

func (r *rawConn) tryRead(fd uintptr) (over bool) {
	into := r.into
	if into == nil {
		if r.l.in == nil {
			r.l.in = getBuffer(chunkSize)
		}
		into = r.l.in.b
	}
	n, err := recvNow(int(fd), into)
	if n > 0 {
		r.n = n
		return true
	}
	if r.into == nil {
		r.l.dropInput()
	}
	if errors.Is(err, syscall.EAGAIN) {
		return false
	}
	if r.readErr = err; err == nil {
		r.readErr = io.EOF
	}
	return true
}

// write writes of b what the socket takes at once: waiting is not for who
// completes a transfer. With more, what follows is to leave in the same packet.
func (r *rawConn) write(b *buffer, more bool) error {
	if r.rc == nil {
		return nil
	}
	r.more, r.wait = more, false
	return r.writeUntil(b, b.hi)
}

// writeAll waits until the socket has taken b.b[b.lo:end].
func (r *rawConn) writeAll(b *buffer, end int) error {
	r.more, r.wait = false, true
	return r.writeUntil(b, end)
}

func (r *rawConn) writeUntil(b *buffer, end int) error {
	r.writing, r.end, r.writeErr = b, end, nil
	if err := r.rc.Write(r.writeFunc); err != nil {
		return err
	}
	return r.writeErr
}

func (r *rawConn) tryWrite(fd uintptr) (over bool) {
	for b := r.writing; b.lo < r.end; {
		n, err := sendNow(int(fd), b.b[b.lo:r.end], r.more)
		switch {
		case n > 0:
			b.lo += n
		case errors.Is(err, syscall.EAGAIN):
			return !r.wait
		default:
			r.writeErr = err
			return true
		}
	}
	return true
}
