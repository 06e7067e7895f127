//go:build !unix

package usbip

// rawConn is not available: every write is left to link.drain.
type rawConn struct{}

func (r *rawConn) init(*link)                  {}
func (r *rawConn) ok() bool                    { return false }
func (r *rawConn) fill() error                 { panic("unreachable") }
func (r *rawConn) read([]byte) (int, error)    { panic("unreachable") }
func (r *rawConn) write(*buffer, bool) error   { return nil }
func (r *rawConn) writeAll(*buffer, int) error { panic("unreachable") }
