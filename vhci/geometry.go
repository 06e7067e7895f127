package vhci

import "github.com/usbns/usbns/usb"

// Hub is one half of a controller: each has two root hubs, and so two ranges of
// ports.
type Hub uint8

// The hubs, as indexes: see [Driver.RootHubs].
const (
	HubHigh  Hub = iota // low, full, high speed and wireless
	HubSuper            // super speed and up
)

// String returns the word of the status file, "hs" or "ss".
func (h Hub) String() string {
	if h == HubHigh {
		return "hs"
	}
	return "ss"
}

// HubFor returns the half that a device of speed s needs.
func HubFor(s usb.Speed) Hub {
	if s.Super() {
		return HubSuper
	}
	return HubHigh
}

// Limits of the kernel's configuration (drivers/usb/usbip/Kconfig):
// USBIP_VHCI_HC_PORTS and USBIP_VHCI_NR_HCS.
const (
	MaxHubPorts    = 15
	MaxControllers = 128
)

// Geometry is how the ports behind a directory are numbered: controller after
// controller, in each first the high speed hub's ports and then as many of the
// super speed hub.
type Geometry struct {
	Controllers int
	HubPorts    int // of one hub; a controller has twice as many
}

// A Place is where a port is.
type Place struct {
	Controller int
	Hub        Hub
	Index      int // in the hub, from 0
}

// Ports returns the number of ports, what the file nports holds.
func (g Geometry) Ports() int { return 2 * g.HubPorts * g.Controllers }

// Number returns the number of the port at p, which must exist.
func (g Geometry) Number(p Place) int {
	return (2*p.Controller+int(p.Hub))*g.HubPorts + p.Index
}

// Place returns where a port is; false if there is no such port.
func (g Geometry) Place(port int) (Place, bool) {
	if port < 0 || port >= g.Ports() {
		return Place{}, false
	}
	half := port / g.HubPorts
	return Place{Controller: half / 2, Hub: Hub(half % 2), Index: port % g.HubPorts}, true
}

// Landing returns the port that a device of speed s takes when it is attached
// to port: the one of the same index in the half that s needs.
func (g Geometry) Landing(port int, s usb.Speed) (int, bool) {
	p, ok := g.Place(port)
	if !ok {
		return 0, false
	}
	p.Hub = HubFor(s)
	return g.Number(p), true
}
