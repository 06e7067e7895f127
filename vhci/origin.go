package vhci

// A Record says where the device on a port came from, which no controller knows.
type Record struct {
	Host  string // as the user named it
	Port  string // of the exporter: a number or a service's name
	BusID string // at the exporter
}
