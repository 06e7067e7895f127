//go:build unix

package usbip

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// rawConn reads and writes a socket without blocking. Its functions are made
// once, so that using them does not allocate.
type rawConn struct {
	l  *link
	rc syscall.RawConn

	readFunc, writeFunc func(fd uintptr) bool

	readErr error // of the reader

	// Of whoever set link.writing.
	writing  *buffer
	call     func(fd int, b []byte) (int, error)
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
func (r *rawConn) fill() error {
	r.readErr = nil
	if err := r.rc.Read(r.readFunc); err != nil {
		return err
	}
	return r.readErr
}

func (r *rawConn) tryRead(fd uintptr) bool {
	l := r.l
	if l.in == nil {
		l.in = getBuffer(chunkSize)
	}
	n, err := retry(syscall.Read, fd, l.in.b)
	if n > 0 {
		l.w = n
		return true
	}
	l.in.free()
	l.in = nil
	if errors.Is(err, syscall.EAGAIN) {
		return false
	}
	if r.readErr = err; err == nil {
		r.readErr = io.EOF
	}
	return true
}

// write writes as much of b as the socket takes at once. With more, what
// follows is to leave in the same packet.
func (r *rawConn) write(b *buffer, more bool) error {
	if r.rc == nil {
		return nil
	}
	r.writing, r.writeErr = b, nil
	r.call = syscall.Write
	if more {
		r.call = writeMore
	}
	if err := r.rc.Write(r.writeFunc); err != nil {
		return err
	}
	return r.writeErr
}

// tryWrite never asks to be called again: waiting is not for who completes a
// transfer.
func (r *rawConn) tryWrite(fd uintptr) bool {
	b := r.writing
	for b.lo < b.hi {
		n, err := retry(r.call, fd, b.b[b.lo:b.hi])
		if n > 0 {
			b.lo += n
			continue
		}
		if !errors.Is(err, syscall.EAGAIN) {
			r.writeErr = err
		}
		break
	}
	return true
}

func retry(call func(int, []byte) (int, error), fd uintptr, b []byte) (int, error) {
	for {
		n, err := call(int(fd), b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
