package control

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/usbns/usbns/policy"
)

// Names of the daemon's sockets in its run directory.
const (
	Socket       = "control.sock"
	AttachSocket = "attach.sock"
)

// OwnDir is where a container has such sockets for its own controller.
const OwnDir = "/dev/usbns"

// MaxSocketPath is how long the path of a socket can be, in bytes (unix(7)).
const MaxSocketPath = 107

// MaxMessage bounds a request, in bytes.
const MaxMessage = 1 << 20

// Create describes controllers to make.
type Create struct {
	Count    int    `json:"count,omitempty"` // 0 is 1
	Name     string `json:"name,omitempty"`  // for one only
	Driver   string `json:"driver"`
	HubPorts int    `json:"hub_ports,omitempty"` // 0 is the default
	// Exclusive asks for a whole controller of the kernel.
	Exclusive bool   `json:"exclusive,omitempty"`
	UID       uint32 `json:"uid"`
	GID       uint32 `json:"gid"`

	// Rules of the policy, added to the driver's default. MaxSpeed is a word of
	// policy.ParseSpeed.
	Allow      []string `json:"allow,omitempty"`
	Deny       []string `json:"deny,omitempty"`
	MaxDevices int      `json:"max_devices,omitempty"`
	MaxSpeed   string   `json:"max_speed,omitempty"`
}

// A Controller is what the daemon tells of one.
type Controller struct {
	Index    int    `json:"index"`
	Name     string `json:"name,omitempty"`
	Driver   string `json:"driver"`
	HubPorts int    `json:"hub_ports"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	// Exclusive is the kernel's controller that it has alone, vhci_hcd.N, if it is
	// exclusive.
	Exclusive string `json:"exclusive,omitempty"`

	Policy policy.Policy `json:"policy"`
}

// A Container says whose a controller is.
type Container struct {
	// PID is a process of the container, in its cgroup and network namespace, and
	// in the mount namespace to show devices in: see package view.
	PID int `json:"pid"`
	// Root is the container's root in that namespace, "/" in the end.
	Root string `json:"root"`
	// RootUID is who is root in the container.
	RootUID uint32 `json:"root_uid,omitempty"`
	// Temporary deletes the controller when the container ends.
	Temporary bool `json:"temporary,omitempty"`
	// Keeper says that the process is no program of the container, but ours and
	// the parent of these.
	Keeper bool `json:"keeper,omitempty"`
}

// A Port is a port of a controller and what is attached to it.
type Port struct {
	Number       int    `json:"port"`
	Hub          string `json:"hub"`    // "hs" or "ss"
	Status       int    `json:"status"` // as in the status file: 4 free, 5 getting ready, 6 in use
	Speed        int    `json:"speed,omitempty"`
	BusID        string `json:"busid,omitempty"` // of this controller
	Vendor       uint16 `json:"vendor,omitempty"`
	Product      uint16 `json:"product,omitempty"`
	Manufacturer string `json:"manufacturer_name,omitempty"`
	ProductName  string `json:"product_name,omitempty"`
	Serial       string `json:"serial,omitempty"`
	DevID        uint32 `json:"devid,omitempty"`
	Path         string `json:"path,omitempty"` // in this machine's sysfs, if its kernel has the device
	Remote       Remote `json:"remote,omitzero"`
}

// A Remote says where a device comes from, as told by whoever attached it.
type Remote struct {
	Host  string `json:"host"`
	Port  string `json:"port"`
	BusID string `json:"busid"`
}

// Attach goes with a socket past IMPORT.
type Attach struct {
	Controller string `json:"controller"` // index or name
	Port       int    `json:"port"`       // AnyPort: a free one for the speed
	DevID      uint32 `json:"devid"`
	Speed      int    `json:"speed"`
	Remote     Remote `json:"remote"`
}

// AnyPort lets the daemon choose.
const AnyPort = -1

// Attached is the answer to an Attach.
type Attached struct {
	Port  int    `json:"port"`
	Error *Error `json:"refused,omitempty"` // nil if the device is attached
}

// An Error is a request the daemon refused.
type Error struct {
	Message string        `json:"error"`
	Errno   syscall.Errno `json:"errno,omitempty"` // Linux's number, where there is one
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the number, so that errors.Is(err, syscall.EBUSY) asks for it.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// A DialError says that there is no daemon to talk to.
type DialError struct {
	Path string
	Err  error
}

func (e *DialError) Error() string {
	switch {
	case len(e.Path) > MaxSocketPath:
		return fmt.Sprintf("no daemon can be on %s, which is longer than the %d bytes of a socket (choose another directory with --run DIR)",
			e.Path, MaxSocketPath)
	case filepath.Dir(e.Path) == OwnDir && errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("%s is for the owner of the controller: %v (see: ls -ln %s)", e.Path, e.Err, e.Path)
	case filepath.Dir(e.Path) == OwnDir:
		return fmt.Sprintf("the daemon of the host does not answer on %s: %v (it is to be started there)", e.Path, e.Err)
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("the daemon on %s is for its own user: %v (use sudo, or a daemon of your own: usbns daemon --run DIR)", e.Path, e.Err)
	}
	return fmt.Sprintf("no daemon answers on %s: %v (start one with: usbns daemon)", e.Path, e.Err)
}

// Unwrap returns the system's error.
func (e *DialError) Unwrap() error { return e.Err }
