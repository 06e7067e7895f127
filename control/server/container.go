//go:build linux

package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"syscall"

	"github.com/usbns/usbns/control"
)

func (s *Server) enter(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	var in control.Container
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, &control.Error{Message: fmt.Sprintf("enter a container: the request is not understood: %v", err), Errno: syscall.EINVAL}
	}
	if s.Containers == nil {
		return nil, errNoContainers()
	}
	return nil, s.Containers.Enter(c, in)
}

func (s *Server) leave(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	if s.Containers == nil {
		return nil, errNoContainers()
	}
	pid, err := strconv.Atoi(r.FormValue("pid"))
	if err != nil {
		return nil, &control.Error{Message: fmt.Sprintf("leave a container: %q is no process", r.FormValue("pid")), Errno: syscall.EINVAL}
	}
	return nil, s.Containers.Leave(c, pid)
}

func (s *Server) container(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	if s.Containers == nil {
		return nil, errNoContainers()
	}
	return s.Containers.Find(c)
}

func errNoContainers() error {
	return &control.Error{Message: "this daemon serves no containers, which need root and /dev/fuse (its log says more)", Errno: syscall.EOPNOTSUPP}
}
