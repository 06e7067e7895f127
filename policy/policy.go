package policy

import (
	"fmt"
	"slices"

	"github.com/usbns/usbns/usb"
)

// A Policy says which devices a controller takes. It does not change once it is
// used, and may be used by several goroutines. The zero Policy takes none.
type Policy struct {
	// Classes are those a device's functions may have.
	Classes Classes `json:"classes"`
	// Allow has devices that may be of any class, but Keyboard only if Classes has
	// that: only then has the host been found safe. Deny has devices that are
	// refused whatever else is said.
	Allow []ID `json:"allow,omitempty"`
	Deny  []ID `json:"deny,omitempty"`
	// MaxDevices is how many may be attached at the same time, 0 for any number.
	MaxDevices int `json:"max_devices,omitempty"`
	// MaxSpeed is the highest speed a device may run at, 0 for any.
	MaxSpeed usb.Speed `json:"max_speed,omitempty"`
}

// Open returns the default of a controller whose devices stay in user space: it
// takes all.
func Open() Policy { return Policy{Classes: All} }

// Guarded returns the default of a controller whose devices reach the kernel.
func Guarded() Policy {
	return Policy{Classes: All.without(Network, Hub, Bluetooth, Storage, Keyboard)}
}

// A Refusal says why a device was refused. It is one line, and nothing of it is
// the device's own text.
type Refusal struct {
	Vendor, Product uint16
	Reason          string // "is a disk (class storage)"
	Mend            string // "--allow storage", "" if nothing helps
}

func (r *Refusal) Error() string {
	s := fmt.Sprintf("device %04x:%04x %s", r.Vendor, r.Product, r.Reason)
	if r.Mend != "" {
		s += ": the controller does not allow that (make one with " + r.Mend + ")"
	}
	return s
}

// A Claim is a driver of the kernel that takes a device by its numbers, whatever
// class the device says it is of.
type Claim struct {
	Module string
	Class  Class // what the driver makes of it
}

// Judge returns nil if a controller may take a device beside others that it has
// already, and a [*Refusal] if not. Claims are of the kernel that the device
// reaches, if it does.
func (p *Policy) Judge(speed usb.Speed, d *usb.Descriptors, others int, claims ...Claim) error {
	refuse := func(mend, format string, args ...any) error {
		return &Refusal{d.Device().Vendor, d.Device().Product, fmt.Sprintf(format, args...), mend}
	}
	names := func(id ID) bool { return id.names(d) }
	switch {
	case slices.ContainsFunc(p.Deny, names):
		return refuse("", "is denied by its number")
	case p.MaxDevices > 0 && others >= p.MaxDevices:
		return refuse(fmt.Sprintf("--max-devices %d", others+1), "is one more than the %d devices there may be", p.MaxDevices)
	case p.MaxSpeed != 0 && speed > p.MaxSpeed:
		return refuse("--max-speed "+speedWord(speed), "runs at %v speed, above %v", speed, p.MaxSpeed)
	}
	allowed := p.Classes
	if slices.ContainsFunc(p.Allow, names) {
		allowed |= All.without(Keyboard)
	}
	for _, f := range functions(d) {
		for _, c := range (f.classes &^ allowed).List() {
			return refuse(mend(c), "%s %s", c.is(), f.where)
		}
	}
	for _, claim := range claims {
		if !allowed.Has(claim.Class) {
			return refuse(mend(claim.Class), "%s by its numbers, to the driver %s", claim.Class.is(), claim.Module)
		}
	}
	return nil
}

func mend(c Class) string {
	if c == Keyboard {
		return "--allow keyboard, or with --driver user"
	}
	return "--allow " + c.String()
}
