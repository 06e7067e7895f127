//go:build linux

// Package daemon wires the rest of usbns together: it holds the controllers of
// a machine, and serves the API of package control and the control files of
// package sysfs in a run directory.
//
// # What lives on
//
// RUNDIR/state has a file for each controller: what it is, and what its driver
// needs to find its devices again. It is written before such a device is let in.
// The daemon may be killed at any moment, and be replaced: the next one has the
// same controllers, and the devices that are in the kernel, on the same ports. A
// kill between the writing and the letting in leaves a device that nothing uses;
// it is restored or detached like the others. Devices of the driver user live in
// the daemon's process and end with it.
//
// What is not found beyond doubt is detached. State that is not understood stops
// the daemon before it has done anything.
//
// # Dead ends
//
// One file for all controllers makes an attach among ten thousand of them write
// megabytes.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container"
	"github.com/usbns/usbns/container/view"
	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/sysfs"
)

// ErrRunning says that another daemon has the run directory.
var ErrRunning = errors.New("another daemon runs there (use it, or choose another directory with --run DIR)")

// restoreTimeout bounds how long the devices of an earlier daemon are looked
// for.
const restoreTimeout = 15 * time.Second

// Run serves the run directory dir, which it makes for its user alone, until
// ctx ends. Devices that are in the kernel stay attached then, for the next
// Run; others are detached. It calls ready once clients can connect.
func Run(ctx context.Context, dir string, log *slog.Logger, ready func()) error {
	return run(ctx, dir, openBackend, log, ready)
}

func run(ctx context.Context, dir string, open func(dir string, tenants *slog.Logger) (*backend, error), log *slog.Logger, ready func()) error {
	if dir == control.OwnDir {
		return fmt.Errorf("%s is for the sockets of the host's daemon (choose another directory with --run DIR)", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the run directory: %w (choose another with --run DIR)", err)
	}
	lock, err := acquire(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	api, err := listen(dir, "unix", control.Socket)
	if err != nil {
		return err
	}
	defer api.Close()
	attach, err := listen(dir, "unixpacket", control.AttachSocket)
	if err != nil {
		return err
	}
	defer attach.Close()

	tenants := slog.New(newQuiet(log.Handler()))
	b, err := open(dir, tenants)
	if err != nil {
		return err
	}
	defer b.close()
	s := &server.Server{Drivers: b.drivers, Log: log}
	disk := &state{dir: filepath.Join(dir, "state"), driver: s.DriverName}
	s.Table = newTable(disk, log, tenants)
	defer s.Table.Close()
	boxes, closeFiles := openContainers(ctx, dir, s, tenants)
	defer closeFiles()
	if boxes != nil {
		s.Containers, disk.container, s.Table.Ready = boxes, boxes.record, boxes.ready
	}
	if err := restore(ctx, s, disk, boxes, log); err != nil {
		return err
	}
	if err := b.sweep(ctx); err != nil {
		log.Warn("devices of an earlier daemon may be left in the kernel", "reason", err)
	}
	if boxes != nil {
		close(boxes.restored)
	}
	ready()
	return s.Serve(ctx, api, attach)
}

// openContainers serves the control files, and returns nil where it cannot.
func openContainers(ctx context.Context, dir string, s *server.Server, tenants *slog.Logger) (*containers, func()) {
	log := s.Log
	keeper, err := view.NewKeeper(tenants)
	if err != nil {
		log.Warn("no containers", "reason", err)
		return nil, func() {}
	}
	k := &containers{keeper: keeper, server: s, log: log, tenants: tenants, restored: make(chan struct{}), members: make(map[*controller.Controller]*member)}
	k.files, err = sysfs.Mount(filepath.Join(dir, "sys"), sysfs.Options{Table: s.Table, Identify: identify, Allowed: k.allowed, Log: tenants})
	if err != nil {
		log.Warn("no control files and no containers, which need root and /dev/fuse", "reason", err)
		_ = keeper.Close()
		return nil, func() {}
	}
	go func() {
		<-k.files.Done()
		if ctx.Err() == nil {
			log.Error("the control files were unmounted by force: restart the daemon")
		}
	}()
	return k, func() {
		if err := k.close(); err != nil {
			log.Warn("containers are not let go of", "reason", err)
		}
		if err := k.files.Close(); err != nil {
			log.Warn("control files are left mounted", "reason", err)
		}
	}
}

// A backend is what can stand behind controllers.
type backend struct {
	drivers map[string]server.Driver
	sweep   func(context.Context) error // ends what was not restored
	close   func() error
}

// openBackend needs no kernel module before a device is attached.
func openBackend(dir string, tenants *slog.Logger) (*backend, error) {
	workers := filepath.Join(dir, "workers")
	if err := os.MkdirAll(workers, 0o700); err != nil {
		return nil, fmt.Errorf("make a directory for workers: %w", err)
	}
	inKernel := kernel.New(kernel.Options{Dir: workers, Log: tenants})
	return &backend{map[string]server.Driver{
		"user":          {Driver: &controller.User{}},
		"kernel":        {Driver: inKernel, Kernel: true, Exclusive: inKernel},
		"kernel-direct": {Driver: inKernel.Direct(), Kernel: true, Exclusive: inKernel},
	}, inKernel.Sweep, inKernel.Close}, nil
}

// newTable has tenants log what they do.
func newTable(disk *state, log, tenants *slog.Logger) *controller.Table {
	return &controller.Table{
		OnEvent: func(e controller.Event) { logEvent(tenants, e) },
		Save:    disk.save,
		Forget: func(index int) {
			if err := disk.forget(index); err != nil {
				log.Error("a deleted controller will come back with the next daemon", "index", index, "reason", err)
			}
		},
	}
}

// restore makes the controllers of an earlier daemon again, and finds their
// devices, of all at the same time.
func restore(ctx context.Context, s *server.Server, disk *state, boxes *containers, log *slog.Logger) error {
	list, err := disk.load()
	if err != nil {
		return err
	}
	made := make([]*controller.Controller, len(list))
	for i, one := range list {
		cfg, err := one.config(s.Drivers)
		if err == nil {
			made[i], err = s.Table.Restore(one.Index, cfg)
		}
		if err != nil {
			return fmt.Errorf("state in %s cannot be used: %w", disk.path(one.Index), err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	var searches sync.WaitGroup
	defer searches.Wait()
	for i, one := range list {
		gone := one.Container != nil && (boxes == nil || !boxes.restore(made[i], *one.Container))
		for p := range one.Ports {
			one.Ports[p].Ending = one.Ports[p].Ending || gone // nobody inherits them
		}
		if len(one.Ports) == 0 && !gone {
			continue
		}
		searches.Go(func() {
			for _, err := range made[i].RestorePorts(ctx, one.Ports, nil) {
				log.Warn("a device of the earlier daemon is detached", "reason", err)
			}
			if gone && one.Container.Temporary {
				if err := s.Table.Delete(made[i]); err != nil {
					log.Warn("the controller of a container that has ended is left", "reason", err)
				}
				return
			}
			if err := made[i].Save(); err != nil {
				log.Error("state cannot be written", "controller", made[i].String(), "reason", err)
			}
		})
	}
	return nil
}

func identify(tid int) (sysfs.Caller, error) {
	c, err := container.IdentifyCaller(tid)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// acquire locks a run directory for as long as the file is open.
func acquire(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// listen takes the place of a socket that a dead daemon left. The directory is
// locked.
func listen(dir, network, name string) (*net.UnixListener, error) {
	path := filepath.Join(dir, name)
	if len(path) > control.MaxSocketPath {
		return nil, fmt.Errorf("listen for clients: the path %s is longer than the %d bytes of a socket (choose another directory with --run DIR)",
			path, control.MaxSocketPath)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove an old socket: %w", err)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		return nil, fmt.Errorf("listen for clients: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("protect a socket: %w", err)
	}
	return l, nil
}

func logEvent(log *slog.Logger, e controller.Event) {
	what := "attached"
	if e.Kind == controller.Detached {
		what = "detached"
	}
	attrs := []any{"controller", e.Controller.String(), "port", e.Port.Number, "product", e.Port.ProductName, "from", e.Port.From.Host}
	if e.Err != nil {
		attrs = append(attrs, "reason", e.Err)
	}
	log.Info(what, attrs...)
}
