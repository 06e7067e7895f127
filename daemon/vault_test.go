//go:build linux

package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// A vault is a driver whose devices outlive the daemon's process: each is a file
// in a directory, which is there as long as the device is attached. Its name
// ends in ".in" once the device was let in.
type vault struct {
	dir string

	mu    sync.Mutex
	known map[string]bool // attached or restored by this process
}

func openVault(dir string) *backend {
	v := &vault{dir: dir, known: make(map[string]bool)}
	drivers := map[string]server.Driver{"user": {Driver: &controller.User{}}, "kernel": {Driver: v}}
	return &backend{drivers, v.sweep, func() error { return nil }}
}

func (v *vault) sweep(context.Context) error {
	files, err := os.ReadDir(v.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if key, _, _ := strings.Cut(f.Name(), "."); !v.known[key] {
			if err := os.Remove(filepath.Join(v.dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *vault) Attach(ctx context.Context, p controller.Plug) (controller.Attachment, error) {
	imp, err := usbip.NewImporter(ctx, p.Conn, p.DevID, p.Speed, nil)
	if err != nil {
		return nil, err
	}
	defer imp.Close()
	if err := p.Judge(imp.Descriptors()); err != nil {
		return nil, fmt.Errorf("%w: %w", controller.ErrRefused, err)
	}
	b, err := json.Marshal(imp.Descriptors().Raw())
	if err != nil {
		return nil, err
	}
	a := v.open(rand.Text(), imp.Descriptors())
	if err := os.WriteFile(a.path, b, 0o600); err != nil {
		return nil, err
	}
	return a.let(p)
}

func (v *vault) Restore(_ context.Context, p controller.Plug, saved []byte) (controller.Attachment, error) {
	a := v.open(string(saved), nil)
	b, err := os.ReadFile(a.path)
	if err != nil {
		b, err = os.ReadFile(a.path + ".in")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", controller.ErrNotRestored, err)
	}
	var raw usb.Raw
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, err
	}
	if a.descriptors, err = usb.NewDescriptors(raw); err != nil {
		return nil, err
	}
	return a.let(p)
}

func (v *vault) open(key string, d *usb.Descriptors) *stored {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known[key] = true
	return &stored{key: key, path: filepath.Join(v.dir, key), descriptors: d, done: make(chan struct{})}
}

type stored struct {
	key, path   string
	descriptors *usb.Descriptors
	once        sync.Once
	done        chan struct{}
}

func (a *stored) let(p controller.Plug) (controller.Attachment, error) {
	if err := p.Ready(a); err != nil {
		a.Detach()
		return nil, fmt.Errorf("%w: %w", controller.ErrRefused, err)
	}
	if err := os.Rename(a.path, a.path+".in"); err != nil && !os.IsNotExist(err) {
		a.Detach()
		return nil, err
	}
	return a, nil
}

func (a *stored) Descriptors() *usb.Descriptors { return a.descriptors }
func (a *stored) Device() usb.Device            { return nil }
func (a *stored) Path() string                  { return "" }
func (a *stored) Saved() []byte                 { return []byte(a.key) }
func (a *stored) Done() <-chan struct{}         { return a.done }
func (a *stored) Err() error                    { return nil }
func (a *stored) Leave()                        { a.once.Do(func() { close(a.done) }) }

func (a *stored) Detach() {
	os.Remove(a.path)
	os.Remove(a.path + ".in")
	a.Leave()
}
