//go:build linux

package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/policy"
)

// State is a directory with a file for each controller, so that a change costs
// the same however many there are. It holds what no kernel knows: that a file is
// there says that the controller is.
type state struct {
	dir    string
	driver func(controller.Driver) string // its name
	// container returns nil for a controller that no container has.
	container func(*controller.Controller) *owner
}

const (
	stateVersion  = 1
	maxStateBytes = 1 << 20
)

// saved is what a file holds.
type saved struct {
	Version  int           `json:"version"`
	Index    int           `json:"index"`
	Name     string        `json:"name,omitempty"`
	Driver   string        `json:"driver"`
	HubPorts int           `json:"hub_ports"`
	UID      uint32        `json:"uid"`
	GID      uint32        `json:"gid"`
	Policy   policy.Policy `json:"policy"`
	// Exclusive is which of the kernel's controllers it has, nil if it shares.
	Exclusive *int                   `json:"exclusive,omitempty"`
	Ports     []controller.SavedPort `json:"ports,omitempty"`

	Container *owner `json:"container,omitempty"`
}

// config is the reverse of save.
func (one *saved) config(drivers map[string]server.Driver) (controller.Config, error) {
	driver, ok := drivers[one.Driver]
	if !ok {
		return controller.Config{}, fmt.Errorf("no driver %q here", one.Driver)
	}
	cfg := controller.Config{
		Name: one.Name, HubPorts: one.HubPorts, Driver: driver.Driver, UID: one.UID, GID: one.GID, Policy: one.Policy,
	}
	if one.Exclusive != nil {
		if driver.Exclusive == nil {
			return cfg, fmt.Errorf("driver %q has no exclusive controllers", one.Driver)
		}
		cfg.Exclusive, cfg.Kernel = driver.Exclusive, *one.Exclusive
	}
	return cfg, nil
}

func (s *state) path(index int) string {
	return filepath.Join(s.dir, strconv.Itoa(index)+".json")
}

// save replaces a controller's file as a whole. It does not wait for the disk:
// what it says is lost with the machine's power anyway.
func (s *state) save(c *controller.Controller) error {
	cfg := c.Config()
	var in *owner
	if s.container != nil {
		in = s.container(c)
	}
	var exclusive *int
	if cfg.Exclusive != nil {
		exclusive = &cfg.Kernel
	}
	b, err := json.Marshal(saved{
		Container: in, Exclusive: exclusive,
		Version: stateVersion, Index: c.Index(), Name: cfg.Name, Driver: s.driver(cfg.Driver),
		HubPorts: cfg.HubPorts, UID: cfg.UID, GID: cfg.GID, Policy: cfg.Policy, Ports: c.Saved(),
	})
	if err != nil {
		return err
	}
	path := s.path(c.Index())
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *state) forget(index int) error {
	err := os.Remove(s.path(index))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load reads all files. What it does not understand whole is an error: to go on
// without would give up devices that are attached.
func (s *state) load() ([]saved, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read the state directory: %w", err)
	}
	var list []saved
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		number, isState := strings.CutSuffix(e.Name(), ".json")
		if !isState {
			if err := os.Remove(path); err != nil { // begun and never ended
				return nil, fmt.Errorf("clear the state directory: %w", err)
			}
			continue
		}
		one, err := read(path)
		if err == nil && strconv.Itoa(one.Index) != number {
			err = fmt.Errorf("it says that it is of controller %d", one.Index)
		}
		if err != nil {
			return nil, fmt.Errorf("state in %s cannot be used: %w (without the file the daemon starts, and the controller and its devices are given up)", path, err)
		}
		list = append(list, one)
	}
	return list, nil
}

func read(path string) (one saved, err error) {
	f, err := os.Open(path)
	if err != nil {
		return one, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStateBytes+1))
	if err != nil {
		return one, err
	}
	if len(b) > maxStateBytes {
		return one, fmt.Errorf("it is longer than %d bytes", maxStateBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&one); err != nil {
		return one, err
	}
	if one.Version != stateVersion {
		return one, fmt.Errorf("it is of version %d, not %d", one.Version, stateVersion)
	}
	return one, nil
}
