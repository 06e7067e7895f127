//go:build linux

// Package server serves the API of package control.
package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"syscall"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/policy"
)

// A Server answers requests about the controllers of a table.
type Server struct {
	Table *controller.Table
	// Drivers are what a controller can be made with.
	Drivers map[string]Driver
	// Host tells whether keyboards can be let into the kernel.
	Host policy.Host
	Log  *slog.Logger
	// Containers are those that controllers are given to, nil where none can be.
	Containers Containers

	only *controller.Controller // see Only
}

// Containers are told which container a controller is for.
type Containers interface {
	Enter(c *controller.Controller, in control.Container) error
	Leave(c *controller.Controller, pid int) error
	Find(c *controller.Controller) (control.Container, error)
}

// A Driver can stand behind controllers.
type Driver struct {
	controller.Driver
	// Kernel says that its devices reach the kernel of this machine: policies
	// begin with policy.Guarded, others with policy.Open.
	Kernel bool
	// Exclusive makes exclusive controllers, nil if there are none of this driver.
	Exclusive controller.Reserver
}

// Handler returns the API, for those who may use all of it.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/controllers", s.answer(s.list))
	mux.HandleFunc("POST /v1/controllers", s.administer(s.create))
	mux.HandleFunc("GET /v1/controllers/{ref}", s.answer(s.get))
	mux.HandleFunc("DELETE /v1/controllers/{ref}", s.administer(s.delete))
	mux.HandleFunc("GET /v1/controllers/{ref}/container", s.administer(s.container))
	mux.HandleFunc("PUT /v1/controllers/{ref}/container", s.administer(s.enter))
	mux.HandleFunc("DELETE /v1/controllers/{ref}/container", s.administer(s.leave))
	mux.HandleFunc("GET /v1/controllers/{ref}/ports", s.answer(s.ports))
	mux.HandleFunc("DELETE /v1/controllers/{ref}/ports/{port}", s.answer(s.detach))
	mux.HandleFunc("POST /v1/controllers/{ref}/ports/{port}/transfer", atOnce(maxTransfers, s.answer(s.transfer)))
	return mux
}

// answer makes a handler of a function that returns what to answer.
func (s *Server) answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, control.MaxMessage)
		v, err := f(r)
		if err != nil {
			refuse(w, s.told(err))
			return
		}
		if v == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

// atOnce refuses requests while n are being answered.
func atOnce(n int, h http.HandlerFunc) http.HandlerFunc {
	running := make(chan struct{}, n)
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
			h(w, r)
		default:
			refuse(w, &control.Error{
				Message: fmt.Sprintf("%d requests of this kind are running already (wait for one to end)", n), Errno: syscall.EAGAIN,
			})
		}
	}
}

func refuse(w http.ResponseWriter, err error) {
	e := wireError(err)
	status := http.StatusBadRequest
	switch e.Errno {
	case syscall.ENOENT:
		status = http.StatusNotFound
	case syscall.EPERM:
		status = http.StatusForbidden
	case syscall.EAGAIN:
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e)
}

func wireError(err error) *control.Error {
	e := &control.Error{Message: err.Error()}
	errors.As(err, &e.Errno)
	return e
}
