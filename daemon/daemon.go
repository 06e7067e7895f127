//go:build linux

// Package daemon wires the rest of usbns together: it holds the controllers of
// a machine, and serves the API of package control and the control files of
// package sysfs in a run directory.
//
// It keeps nothing on disk: devices of the driver user live in its process, and
// end with it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container"
	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/sysfs"
)

// ErrRunning says that another daemon has the run directory.
var ErrRunning = errors.New("another daemon runs there")

// requestTimeout bounds how long a client may take to make its request.
const requestTimeout = 10 * time.Second

// Run serves the run directory dir, which it makes for its user alone, until
// ctx ends, and then detaches everything. It calls ready once clients can
// connect.
func Run(ctx context.Context, dir string, log *slog.Logger, ready func()) error {
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

	table := &controller.Table{OnEvent: func(e controller.Event) { logEvent(log, e) }}
	defer table.Close()
	files, err := sysfs.Mount(filepath.Join(dir, "sys"), sysfs.Options{Table: table, Identify: identify, Log: log})
	if err != nil {
		log.Warn("no control files, which need root and /dev/fuse", "reason", err)
	} else {
		defer func() {
			if err := files.Close(); err != nil {
				log.Warn("control files are left mounted", "reason", err)
			}
		}()
	}
	s := &server.Server{Table: table, Drivers: map[string]controller.Driver{"user": &controller.User{}}}
	ready()
	return serve(ctx, s, api, attach)
}

func identify(tid int) (sysfs.Caller, error) {
	c, err := container.IdentifyCaller(tid)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// serve returns when ctx ends or either socket fails, after both have ended.
func serve(ctx context.Context, s *server.Server, api, attach *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	web := http.Server{Handler: s.Handler(), ReadTimeout: requestTimeout}
	ended := make(chan error, 2)
	go func() { ended <- web.Serve(api) }()
	go func() { ended <- s.ServeAttach(ctx, attach) }()
	var failed error
	running := 2
	select {
	case <-ctx.Done():
	case failed = <-ended:
		running--
	}
	cancel()
	_ = web.Close()
	for range running {
		<-ended
	}
	return failed
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
