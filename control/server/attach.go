//go:build linux

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/usbns/usbns/container"
	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

const (
	// handOver bounds the time from a connection to its message, which a
	// client sends at once.
	handOver = 5 * time.Second
	// maxAttach is far above an Attach with the longest names.
	maxAttach = 4096
)

func (s *Server) serveAttach(ctx context.Context, u *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { u.Close() })()
	a, conn, err := s.receive(u)
	var answer control.Attached
	if err == nil {
		go func() { // ends with u
			_, _ = io.Copy(io.Discard, u)
			cancel()
		}()
		if answer.Port, err = s.plug(ctx, conn, a); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		s.Log.Warn("attach is refused", "controller", s.logged(a.Controller), "from", a.Remote.Host, "busid", a.Remote.BusID, "reason", err)
		answer.Error = wireError(s.told(err))
	}
	b, err := json.Marshal(answer)
	if err == nil {
		_, _ = u.Write(b)
	}
}

func (s *Server) receive(u *net.UnixConn) (a control.Attach, conn net.Conn, err error) {
	if err := u.SetReadDeadline(time.Now().Add(handOver)); err != nil {
		return a, nil, err
	}
	payload, conn, err := container.ReceiveSocket(u, maxAttach)
	if err != nil {
		return a, nil, err
	}
	// A refusal ahead of that would be lost: who cannot send does not read.
	if err = s.checkPeer(u); err != nil {
		conn.Close()
		return a, nil, err
	}
	if err = json.Unmarshal(payload, &a); err == nil {
		err = u.SetReadDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return a, nil, fmt.Errorf("attach: the request is not understood: %w", err)
	}
	return a, conn, nil
}

func (s *Server) plug(ctx context.Context, conn net.Conn, a control.Attach) (int, error) {
	c, err := s.find(a.Controller)
	if err != nil {
		return 0, err
	}
	if a.Speed < 0 || a.Speed > int(usb.SpeedSuperPlus) {
		return 0, &control.Error{Message: "attach: no such speed: " + strconv.Itoa(a.Speed), Errno: syscall.EINVAL}
	}
	from := vhci.Record{Host: a.Remote.Host, Port: a.Remote.Port, BusID: a.Remote.BusID}
	if from != (vhci.Record{}) {
		if err := from.Check(); err != nil {
			return 0, &control.Error{Message: fmt.Sprintf("attach: where the device comes from cannot be shown: %v", err), Errno: syscall.EINVAL}
		}
	}
	speed := usb.Speed(a.Speed)
	port := a.Port
	if port == control.AnyPort {
		port = freePort(c, speed)
	}
	if port < 0 {
		return 0, &control.Error{
			Message: fmt.Sprintf("attach: controller %s has no free port for %v speed (detach something: usbns detach -p PORT)", a.Controller, speed),
			Errno:   syscall.ENOSPC,
		}
	}
	return c.Attach(ctx, port, controller.Plug{Conn: conn, Speed: speed, DevID: a.DevID, From: from})
}

// freePort returns -1 if there is none.
func freePort(c *controller.Controller, speed usb.Speed) int {
	for _, p := range c.Ports() {
		if p.Free() && p.Hub == vhci.HubFor(speed) {
			return p.Number
		}
	}
	return -1
}
