//go:build linux

package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/container/join"
	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/vhci"
	"github.com/usbns/usbns/worker"
)

// proofTime bounds how long all attempts take together.
const proofTime = 5 * time.Minute

// A Neighbour is somebody else who may have devices.
type Neighbour struct {
	Container control.Container // PID is 0 if there is none
	Ports     []control.Port
}

// A Proof is how the attempts of package escape ended that were made in a
// container.
type Proof struct {
	// Own and Neighbour are the devices that were tried to be reached, by their
	// bus ids on this machine and serial numbers.
	Own       string    `json:"own"`
	Neighbour string    `json:"neighbour"`
	Attempts  []Attempt `json:"attempts"`
}

// An Attempt is one of them.
type Attempt struct {
	Case    string  `json:"case"`
	Why     string  `json:"why"` // what would be lost
	Own     bool    `json:"own"` // on the own device
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"` // the evidence, or what was in the way
}

// A Verdict is what an attempt shows.
type Verdict string

// The verdicts. On the own device an attempt must succeed, or it has no eyes.
const (
	KeptOut Verdict = "kept out"
	Escaped Verdict = "escaped"
	Reached Verdict = "reached"
	Blind   Verdict = "blind"
)

// Holds reports whether no attempt has reached the neighbour, and none is blind.
func (p *Proof) Holds() bool {
	return !slices.ContainsFunc(p.Attempts, func(a Attempt) bool { return a.Verdict == Escaped || a.Verdict == Blind })
}

// ErrNoNeighbour says that there is nobody whose device could be reached.
var ErrNoNeighbour = errors.New("no other controller has a device in the kernel that a serial number tells from its own " +
	"(attach one, for example from usbns export --device signpad, to a controller of driver kernel)")

// Prove tries in the container to reach the device of one of the neighbours. It
// needs root. Who is let through may detach that device. The own one stays.
func (c *Container) Prove(ctx context.Context, neighbours []Neighbour) (*Proof, error) {
	p, err := c.find()
	if err != nil {
		return nil, err
	}
	known, err := c.known(neighbours)
	if err != nil {
		return nil, err
	}
	set, err := p.mayHave()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, proofTime, fmt.Errorf("the attempts have not ended after %v", proofTime))
	defer cancel()
	defer provoke(known.Neighbour)()
	results, err := attack(ctx, join.Config{PID: p.pid, Cgroup: filepath.Join(cgroups, p.cgroup), Capabilities: set}, known)
	if err != nil {
		return nil, err
	}
	return judge(known, results)
}

// known chooses devices, and tells the attacker all that is known of them.
func (c *Container) known(neighbours []Neighbour) (known escape.Known, err error) {
	known.KeepOwn = true
	i := slices.IndexFunc(c.Ports, func(p control.Port) bool { return p.Path != "" && p.Serial != "" })
	if i < 0 {
		return known, errors.New("it has no device in the kernel with a serial number to know it by, so the attempts would have no eyes (attach one)")
	}
	own := c.Ports[i]
	for _, n := range neighbours {
		for _, port := range n.Ports {
			if port.Path == "" || port.Serial == "" || strings.Contains(port.Serial, own.Serial) || strings.Contains(own.Serial, port.Serial) {
				continue
			}
			if known.Own, err = target(own); err != nil {
				return known, err
			}
			if known.Neighbour, err = target(port); err != nil {
				return known, err
			}
			return known, c.tellNeighbour(&known.Neighbour, n.Container)
		}
	}
	return known, ErrNoNeighbour
}

func target(port control.Port) (escape.Target, error) {
	t, err := escape.Describe(port.Path)
	if err != nil {
		return t, err
	}
	kernel, err := vhci.Open(0)
	if err != nil {
		return t, err
	}
	defer kernel.Close()
	ports, err := kernel.AllPorts()
	if err != nil {
		return t, err
	}
	i := slices.IndexFunc(ports, func(p vhci.Port) bool { return p.BusID == t.BusID })
	if i < 0 {
		return t, fmt.Errorf("device %s has left", t.BusID)
	}
	t.Port = ports[i].Number
	return t, nil
}

func (c *Container) tellNeighbour(t *escape.Target, in control.Container) error {
	t.Marks = []string{worker.Name}
	for _, name := range []string{control.Socket, control.AttachSocket} {
		t.Sockets = append(t.Sockets, filepath.Join(c.RunDir, name))
	}
	if in.PID == 0 {
		return nil
	}
	n := Container{Host: c.Host, Container: in}
	p, err := n.find()
	if err != nil {
		return err
	}
	t.Cgroup = strings.TrimPrefix(p.cgroup, "/")
	t.CgroupHandle, err = escape.HandleOf(filepath.Join(cgroups, p.cgroup))
	return err
}

// provoke has the kernel tell of a device until the function that it returns is
// called.
func provoke(t escape.Target) (stop func()) {
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			_ = os.WriteFile(filepath.Join(t.Path, "uevent"), []byte("change"), 0) // it may be gone
			select {
			case <-done:
				return
			case <-time.After(time.Second / 2):
			}
		}
	})
	return func() {
		close(done)
		ended.Wait()
	}
}
