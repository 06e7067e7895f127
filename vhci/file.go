//go:build linux

package vhci

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// maxFile is the most an attribute of sysfs can hold: a page. A status file
	// of 30 ports has some 2 KiB.
	maxFile = 4096
	// maxNames is far more than any directory here has entries, but a platform
	// directory of very many controllers.
	maxNames = 1 << 16
)

// A directory is an open directory under devices/platform.
type directory struct {
	*os.Root
	name string // from devices/platform
}

func (dir directory) open(name string) (directory, error) {
	root, err := dir.OpenRoot(name)
	if err != nil {
		return directory{}, bare(err)
	}
	return directory{root, filepath.Join(dir.name, name)}, nil
}

// readFile reads a whole small file, whatever it turns out to be.
func readFile(dir directory, name string) ([]byte, error) {
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	return readBounded(f, name)
}

// readBounded asks for all at once: a file served from memory then answers with
// one state and not with a piece of each of two.
func readBounded(f *os.File, name string) ([]byte, error) {
	buf := make([]byte, maxFile+1)
	n, err := io.ReadFull(f, buf)
	switch {
	case err == nil:
		return nil, syntaxf("%s: longer than %d bytes", name, maxFile)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return buf[:n], nil
	}
	return nil, bare(err)
}

// write writes a control file with exactly one write(2), since that is one
// request, and without the runtime's poller: see the package comment.
func (d *Driver) write(dir directory, name string, text []byte) error {
	if d.writer != nil {
		return d.writer(filepath.Join(dir.name, name), text)
	}

	f, err := dir.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return bare(err)
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return bare(err)
	}
	var writeErr error
	if err := conn.Write(func(fd uintptr) bool {
		writeErr = writeOnce(int(fd), text)
		return true
	}); err != nil {
		return bare(err)
	}
	return writeErr
}

func writeOnce(fd int, text []byte) error {
	for {
		n, err := syscall.Write(fd, text)
		switch {
		case err == syscall.EINTR:
			// The request had not been seen yet.
		case err != nil:
			return err
		case n != len(text):
			return io.ErrShortWrite
		default:
			return nil
		}
	}
}

func readNames(dir directory, name string) ([]string, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(maxNames)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, bare(err)
	}
	return names, nil
}

// readAttr reads an attribute of one line.
func readAttr(dir directory, name string) (string, error) {
	text, err := readFile(dir, name)
	return strings.TrimSuffix(string(text), "\n"), err
}
