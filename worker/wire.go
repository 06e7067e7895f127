//go:build linux

package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// version is raised when the messages change their meaning.
const version = 1

const (
	// maxMessage holds the largest descriptors, usb.MaxDescriptorBytes, in JSON,
	// and is below what a socket takes by default (net.core.wmem_default).
	maxMessage = 200 << 10
	// maxText is of an error, in bytes.
	maxText = 512
	// sendTimeout is for the other side to take a message.
	sendTimeout = 2 * time.Second
)

// The requests, and the event.
const (
	opHello  = "hello"
	opImport = "import" // with a connection past IMPORT
	opServe  = "serve"  // with one end of a socketpair
	opClose  = "close"
	opEnded  = "ended"
)

// A message is a request, an answer, or an event.
type message struct {
	Seq    uint64 `json:"seq,omitempty"` // of a request and its answer, 0 for events
	Op     string `json:"op"`
	Device uint64 `json:"device,omitempty"`

	DevID   uint32    `json:"devid,omitempty"`
	Speed   usb.Speed `json:"speed,omitempty"`
	Timeout int64     `json:"timeout,omitempty"` // of import, in milliseconds

	Hello *hello   `json:"hello,omitempty"`
	Raw   *usb.Raw `json:"raw,omitempty"`
	Error *failure `json:"error,omitempty"`
}

type hello struct {
	Version int      `json:"version"`
	Nonce   string   `json:"nonce"`          // tells this worker from all others
	Held    []uint64 `json:"held,omitempty"` // devices that the kernel has
}

// A failure is an error on its way.
type failure struct {
	Kind string `json:"kind,omitempty"`
	Text string `json:"text"`
}

const (
	kindTimeout  = "timeout"
	kindProtocol = "protocol"
)

func newFailure(err error) *failure {
	f := &failure{Text: err.Error()}
	_, badDescriptor := errors.AsType[*usb.DescriptorError](err)
	_, badTransfer := errors.AsType[*usb.StatusError](err)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		f.Kind = kindTimeout
	case badDescriptor, badTransfer, errors.Is(err, usbip.ErrProtocol):
		f.Kind = kindProtocol
	}
	if len(f.Text) > maxText {
		f.Text = f.Text[:maxText]
	}
	return f
}

// err makes an error of f that is safe to print.
func (f *failure) err() error {
	if f == nil {
		return nil
	}
	e := &Error{Text: strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, f.Text[:min(len(f.Text), maxText)])}
	switch f.Kind {
	case kindTimeout:
		e.kind = os.ErrDeadlineExceeded
	case kindProtocol:
		e.kind = usbip.ErrProtocol
	}
	return e
}

// An Error is what a worker tells of a device. It wraps os.ErrDeadlineExceeded
// if the exporter did not answer in time, and usbip.ErrProtocol if what it
// answered cannot be used.
type Error struct {
	Text string
	kind error
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error { return e.kind }

// A wire is a connection between daemon and worker. Only one goroutine receives.
type wire struct {
	c   *net.UnixConn
	buf []byte

	mu sync.Mutex // of sending
}

func newWire(f *os.File) (*wire, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("not a unix socket")
	}
	return &wire{c: c}, nil
}

// send sends m, and with it fd if that is not negative.
func (w *wire) send(m *message, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("message %s of %d bytes is too long", m.Op, len(b))
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, _, err = w.c.WriteMsgUnix(b, rights, nil)
	return err
}

// receive returns the next message, and the descriptor that came with it, nil if
// there was none or files is not set.
func (w *wire) receive(files bool) (m message, f *os.File, err error) {
	if w.buf == nil {
		w.buf = make([]byte, maxMessage)
	}
	var control []byte
	if files {
		control = make([]byte, unix.CmsgSpace(4))
	}
	n, controls, flags, _, err := w.c.ReadMsgUnix(w.buf, control)
	if err != nil {
		return m, nil, err
	}
	if f, err = onlyFile(control[:controls]); err != nil {
		return m, nil, err
	}
	defer func() {
		if err != nil && f != nil {
			f.Close()
		}
	}()
	if flags&unix.MSG_TRUNC != 0 {
		return m, f, fmt.Errorf("a message of more than %d bytes", maxMessage)
	}
	if err := json.Unmarshal(w.buf[:n], &m); err != nil {
		return m, f, fmt.Errorf("a message is not understood: %w", err)
	}
	return m, f, nil
}

// onlyFile returns the one descriptor there is room for.
func onlyFile(control []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("a message with something else than a descriptor: %v", err)
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "socket"), nil
}
