//go:build linux

package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// maxTransfers bounds the transfers at one time, each with up to
// control.MaxTransfer bytes of data.
const maxTransfers = 64

// transfer makes a transfer that ends with the request at the latest.
func (s *Server) transfer(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	dev, err := inUserSpace(c, r.PathValue("ref"), r.PathValue("port"))
	if err != nil {
		return nil, err
	}
	var t control.Transfer
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, transferError(syscall.EINVAL, "the request is not understood: %v", err)
	}
	timeout := cmp.Or(time.Duration(t.Timeout)*time.Millisecond, control.DefaultTransferTimeout)
	if t.Timeout < 0 || t.Timeout > control.MaxTransferTimeout.Milliseconds() {
		return nil, transferError(syscall.EINVAL, "no time-out from 1 ms to %v: %d ms", control.MaxTransferTimeout, t.Timeout)
	}
	u, err := request(dev, t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if err := usb.Do(ctx, dev, u); err != nil {
		return nil, failed(u, err, timeout)
	}
	done := control.Transferred{Actual: u.Actual}
	if u.In() {
		done.Data = u.Buffer[:u.Actual]
	}
	return done, nil
}

// A source is a device that tells its endpoints, as those of package usbip and
// emulate do.
type source interface {
	usb.Device
	Endpoint(usb.Address) (usb.Endpoint, bool)
}

// inUserSpace returns the device on a port of what was found as ref.
func inUserSpace(c *controller.Controller, ref, number string) (source, error) {
	ports := c.Ports()
	port, err := strconv.Atoi(number)
	if err != nil || port < 0 || port >= len(ports) {
		return nil, transferError(syscall.EINVAL, "controller %s has no port %q, but 0 to %d", ref, number, len(ports)-1)
	}
	dev, ok := c.Device(port).(source)
	switch {
	case ok:
		return dev, nil
	case ports[port].Status != vhci.StatusUsed:
		return nil, transferError(syscall.ENODEV, "there is no device on port %d of controller %s (see: usbns port -a)", port, ref)
	}
	return nil, transferError(syscall.EBUSY,
		"the device on port %d of controller %s is used elsewhere (transfers are for controllers made with --driver user)", port, ref)
}

// request makes a URB of what is asked for, which dev can take.
func request(dev source, t control.Transfer) (*usb.URB, error) {
	address := usb.Address(t.Endpoint)
	if len(t.Data) > control.MaxTransfer || t.Length < 0 || t.Length > control.MaxTransfer {
		return nil, transferError(syscall.EINVAL, "a transfer moves %d bytes at the most", control.MaxTransfer)
	}
	if address == 0 {
		return controlRequest(t)
	}
	if t.Setup != nil {
		return nil, transferError(syscall.EINVAL, "a setup packet is for endpoint 0, not for %#02x", t.Endpoint)
	}
	ep, ok := dev.Endpoint(address)
	if !ok || address.Number() == 0 || ep.Address != address {
		return nil, transferError(syscall.EINVAL, "no endpoint %#02x here, there is: %s", t.Endpoint, endpoints(dev))
	}
	u := &usb.URB{Endpoint: address, Type: ep.Type, Interval: int32(ep.Interval), Buffer: t.Data}
	switch {
	case ep.Type != usb.Bulk && ep.Type != usb.Interrupt:
		return nil, transferError(syscall.EINVAL, "endpoint %#02x is %v, and transfers are control, bulk or interrupt", t.Endpoint, ep.Type)
	case address.In() && t.Data != nil:
		return nil, transferError(syscall.EINVAL, "endpoint %#02x sends data and takes none", t.Endpoint)
	case !address.In() && t.Length != 0:
		return nil, transferError(syscall.EINVAL, "endpoint %#02x takes data, whose length is its own", t.Endpoint)
	}
	if address.In() {
		u.Buffer = make([]byte, cmp.Or(t.Length, int(ep.MaxPacket&0x7ff)))
	}
	return u, nil
}

func controlRequest(t control.Transfer) (*usb.URB, error) {
	if len(t.Setup) != 8 || t.Length != 0 {
		return nil, transferError(syscall.EINVAL, "a transfer to endpoint 0 has a setup packet of 8 bytes, which tells the length")
	}
	u := &usb.URB{Type: usb.Control, Setup: usb.ParseSetup([8]byte(t.Setup)), Buffer: t.Data}
	switch {
	case u.Setup.In() && t.Data != nil:
		return nil, transferError(syscall.EINVAL, "%v asks for data and takes none", u.Setup)
	case u.Setup.In():
		u.Endpoint |= usb.DirIn
		u.Buffer = make([]byte, u.Setup.Length)
	case len(t.Data) != int(u.Setup.Length):
		return nil, transferError(syscall.EINVAL, "%v goes with %d bytes of data, which are %d", u.Setup, u.Setup.Length, len(t.Data))
	}
	return u, nil
}

// endpoints lists what dev has, for people.
func endpoints(dev source) string {
	list := []string{"0 (control)"}
	for n := range 15 {
		for _, a := range [...]usb.Address{usb.Address(n + 1), usb.Address(n+1) | usb.DirIn} {
			if ep, ok := dev.Endpoint(a); ok {
				list = append(list, fmt.Sprintf("%#02x (%v)", uint8(a), ep.Type))
			}
		}
	}
	return strings.Join(list, ", ")
}

// failed says what became of u and what helps.
func failed(u *usb.URB, err error, timeout time.Duration) error {
	status, isStatus := errors.AsType[*usb.StatusError](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return transferError(syscall.ETIMEDOUT, "%v: nothing more after %v and %d bytes (ask for more time with --timeout)",
			u.Endpoint, timeout, u.Actual)
	case errors.Is(err, usb.ErrGone):
		return transferError(syscall.ENODEV, "%v: %v", u.Endpoint, err)
	case errors.Is(err, usb.ErrTooMany):
		return transferError(syscall.EAGAIN, "%v: %v (wait for some to end)", u.Endpoint, err)
	case !isStatus:
		return transferError(syscall.EINVAL, "%v: %v", u.Endpoint, err)
	case status.Status == usb.StatusStall && u.Type == usb.Control:
		return transferError(syscall.EPIPE, "%v: the device does not support that (stall)", u.Setup)
	case status.Status == usb.StatusStall:
		clearHalt := usb.ClearHalt(u.Endpoint).Bytes()
		return transferError(syscall.EPIPE, "%v: %v (go on with: usbns transfer --setup %x)", u.Endpoint, err, clearHalt)
	case status.Status == usb.StatusOverflow:
		return transferError(syscall.EOVERFLOW, "%v: %v (ask for whole packets with --length)", u.Endpoint, err)
	}
	return transferError(errno(status.Status), "%v: %v", u.Endpoint, err)
}

// errno is EIO where a status, which may come from a peer, is no number of
// Linux's.
func errno(s usb.Status) syscall.Errno {
	if s >= 0 || s < -4095 {
		return syscall.EIO
	}
	return syscall.Errno(-s)
}

func transferError(errno syscall.Errno, format string, args ...any) error {
	return &control.Error{Message: "transfer: " + fmt.Sprintf(format, args...), Errno: errno}
}
