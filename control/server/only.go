//go:build linux

package server

import (
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/policy"
)

// What a container can have the daemon do at one time. Of attaches to one
// controller all but one are refused anyway.
const (
	ownConns    = 16
	ownAttaches = 4
)

// Only returns a server for the container that has c. It knows no other
// controller: c is number 0 and has no name. It makes and deletes none, and lets
// in whoever can connect.
func (s *Server) Only(c *controller.Controller) *Server {
	only := *s
	only.only = c
	return &only
}

// administer answers what only is asked of the host's sockets.
func (s *Server) administer(f func(*http.Request) (any, error)) http.HandlerFunc {
	if s.only == nil {
		return s.answer(f)
	}
	return s.answer(func(*http.Request) (any, error) {
		return nil, &control.Error{
			Message: "a container administers no controllers, not even its own (do it on the host)",
			Errno:   syscall.EPERM,
		}
	})
}

func (s *Server) all() []*controller.Controller {
	if s.only != nil {
		return []*controller.Controller{s.only}
	}
	return s.Table.All()
}

// findOnly says the same of all that is not the own controller, whether it is
// there or not.
func (s *Server) findOnly(ref string) (*controller.Controller, error) {
	if ref != "0" {
		return nil, &control.Error{Message: "a container has one controller, 0, and no other can be named here (leave out -i)", Errno: syscall.ENOENT}
	}
	return s.only, nil
}

// logged is how the log names what was asked for.
func (s *Server) logged(ref string) string {
	if s.only != nil {
		return s.only.String()
	}
	return ref
}

// told returns what of an error may be told. A container is not told which of the
// host's controllers it has, nor where on the host something failed: of what is
// not known to be harmless it gets the number.
func (s *Server) told(err error) error {
	failed, ok := errors.AsType[*controller.Error](err)
	if s.only == nil || !ok {
		return err
	}
	e := *failed
	e.Controller = "controller 0"
	switch e.Errno {
	case syscall.EINVAL, syscall.EBUSY, syscall.EAGAIN: // none is of a driver
	case syscall.EPROTO: // what the device says
	default:
		e.Err = nil
		if refusal, ok := errors.AsType[*policy.Refusal](failed.Err); ok {
			e.Err = refusal
		}
	}
	return &e
}

// atMost closes connections above a number.
func atMost(n int32) func(net.Conn, http.ConnState) {
	var open atomic.Int32
	return func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > n {
				conn.Close()
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
}
