//go:build linux

package server

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/vhci"
)

func (s *Server) list(*http.Request) (any, error) {
	list := []control.Controller{}
	for _, c := range s.all() {
		list = append(list, s.describe(c))
	}
	return list, nil
}

func (s *Server) create(r *http.Request) (any, error) {
	var req control.Create
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		return nil, &control.Error{Message: fmt.Sprintf("create: the request is not understood: %v", err), Errno: syscall.EINVAL}
	}
	driver, ok := s.Drivers[req.Driver]
	if !ok {
		return nil, &control.Error{
			Message: fmt.Sprintf("create: no driver %q here, there is: %s", req.Driver, strings.Join(s.driverNames(), ", ")),
			Errno:   syscall.EINVAL,
		}
	}
	if req.Exclusive && driver.Exclusive == nil {
		return nil, &control.Error{
			Message: fmt.Sprintf("create: an exclusive controller has one of the kernel's, so its driver is kernel, not %s", req.Driver),
			Errno:   syscall.EINVAL,
		}
	}
	rules, err := s.policy(req, driver.Kernel)
	if err != nil {
		return nil, &control.Error{Message: "create: " + err.Error(), Errno: syscall.EINVAL}
	}
	cfg := controller.Config{
		Name: req.Name, HubPorts: req.HubPorts, Driver: driver.Driver, UID: req.UID, GID: req.GID, Policy: rules,
	}
	if req.Exclusive {
		cfg.Exclusive = driver.Exclusive
	}
	made, err := s.Table.Create(cfg, cmp.Or(req.Count, 1))
	if err != nil {
		return nil, err
	}
	list := make([]control.Controller, 0, len(made))
	for _, c := range made {
		list = append(list, s.describe(c))
	}
	return list, nil
}

// policy returns what a request makes of a driver's default. Keyboards are let
// into the kernel only where the host is safe from them.
func (s *Server) policy(req control.Create, kernel bool) (policy.Policy, error) {
	p := policy.Open()
	if kernel {
		p = policy.Guarded()
	}
	p, err := p.With(req.Allow, req.Deny)
	if err != nil {
		return p, err
	}
	if p.MaxDevices = req.MaxDevices; p.MaxDevices < 0 {
		return p, fmt.Errorf("%d devices are less than none", p.MaxDevices)
	}
	if req.MaxSpeed != "" {
		if p.MaxSpeed, err = policy.ParseSpeed(req.MaxSpeed); err != nil {
			return p, err
		}
	}
	if kernel && p.Classes.Has(policy.Keyboard) {
		err = s.Host.KeyboardSafe()
	}
	return p, err
}

func (s *Server) get(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	return s.describe(c), nil
}

func (s *Server) delete(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	return nil, s.Table.Delete(c)
}

func (s *Server) ports(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	list := []control.Port{}
	for _, p := range c.Ports() {
		list = append(list, describePort(p))
	}
	return list, nil
}

func (s *Server) detach(r *http.Request) (any, error) {
	c, err := s.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(r.PathValue("port"))
	if err != nil {
		return nil, &control.Error{Message: fmt.Sprintf("detach: %q is no port number", r.PathValue("port")), Errno: syscall.EINVAL}
	}
	return nil, c.Detach(port)
}

// find returns the controller of an index or a name.
func (s *Server) find(ref string) (*controller.Controller, error) {
	if s.only != nil {
		return s.findOnly(ref)
	}
	c := s.Table.ByName(ref)
	if index, err := strconv.Atoi(ref); c == nil && err == nil {
		c = s.Table.Controller(index)
	}
	if c == nil {
		return nil, &control.Error{Message: fmt.Sprintf("there is no controller %q (there are: usbns controller list; make one: usbns controller create)", ref), Errno: syscall.ENOENT}
	}
	return c, nil
}

func (s *Server) describe(c *controller.Controller) control.Controller {
	config := c.Config()
	d := control.Controller{
		Index: c.Index(), Name: config.Name, Driver: s.DriverName(config.Driver),
		HubPorts: config.HubPorts, UID: config.UID, GID: config.GID, Policy: config.Policy,
	}
	if config.Exclusive != nil {
		d.Exclusive = fmt.Sprintf("vhci_hcd.%d", config.Kernel)
	}
	if s.only != nil {
		d.Index, d.Name, d.Exclusive = 0, "", ""
	}
	return d
}

// DriverName returns the name of one of the drivers, "" if it is none of them.
func (s *Server) DriverName(d controller.Driver) string {
	for name, driver := range s.Drivers {
		if driver.Driver == d {
			return name
		}
	}
	return ""
}

func (s *Server) driverNames() []string {
	var names []string
	for name := range s.Drivers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func describePort(p controller.PortInfo) control.Port {
	d := control.Port{Number: p.Number, Hub: p.Hub.String(), Status: int(p.Status)}
	if p.Status != vhci.StatusUsed {
		return d
	}
	d.Speed, d.BusID, d.DevID = int(p.Speed), p.BusID, p.DevID
	d.Vendor, d.Product = p.Vendor, p.Product
	d.Manufacturer, d.ProductName, d.Serial = p.ManufacturerName, p.ProductName, p.SerialNumber
	d.Path = p.Path
	d.Remote = control.Remote{Host: p.From.Host, Port: p.From.Port, BusID: p.From.BusID}
	return d
}
