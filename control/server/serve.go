//go:build linux

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
)

const (
	// requestTimeout bounds how long a client may take to make its request.
	requestTimeout = 10 * time.Second
	// maxRequests and maxAttaches bound what is done at one time.
	maxRequests = 256
	maxAttaches = 256
	// maxHeader is far above the few lines of a request, in bytes.
	maxHeader = 16 << 10
	// acceptPause is how long nobody is accepted when there is no descriptor left.
	acceptPause = 100 * time.Millisecond
)

// Serve answers requests on api, and takes sockets on attach, until ctx ends or
// one of them fails. It returns when all requests and attempts are over, and
// closes both.
func (s *Server) Serve(ctx context.Context, api, attach *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 2)
	go func() { ended <- s.serveRequests(ctx, api) }()
	go func() { ended <- s.acceptAttaches(ctx, attach) }()
	failed := <-ended
	cancel()
	<-ended
	return failed
}

func (s *Server) serveRequests(ctx context.Context, l *net.UnixListener) error {
	var requests sync.RWMutex // read-locked by each
	h := atOnce(maxRequests, s.Handler().ServeHTTP)
	web := http.Server{
		ReadTimeout:    requestTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(s.Log.Handler(), slog.LevelError),
		// A closed connection does not end a request whose body was not read whole.
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, s.checkPeer(conn.(*net.UnixConn)))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err, _ := r.Context().Value(peerKey{}).(error); err != nil {
				refuse(w, err)
				return
			}
			if !requests.TryRLock() {
				return // its connection has been closed
			}
			defer requests.RUnlock()
			h(w, r)
		}),
	}
	if s.only != nil {
		web.ConnState = atMost(ownConns)
	}
	stop := context.AfterFunc(ctx, func() { web.Close() })
	defer stop()
	err := web.Serve(l)
	_ = web.Close()
	requests.Lock() // for good
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve clients on %v: %w", l.Addr(), err)
}

// peerKey is where a request's context has the error of checkPeer.
type peerKey struct{}

// checkPeer lets root in and the daemon's own user. The modes of the sockets do
// as well, until somebody opens them up or binds them into a container. A
// container's own sockets are for whom the kernel lets connect.
func (s *Server) checkPeer(conn *net.UnixConn) error {
	if s.only != nil {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		peer, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("who calls cannot be told: %w", credErr)
	}
	if own := uint32(os.Geteuid()); peer.Uid != 0 && peer.Uid != own {
		return &control.Error{
			Message: fmt.Sprintf("user %d does not administer controllers (call as root or as user %d; a controller's owner has its files)", peer.Uid, own),
			Errno:   syscall.EPERM,
		}
	}
	return nil
}

func (s *Server) acceptAttaches(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	most := maxAttaches
	if s.only != nil {
		most = ownAttaches
	}
	running := make(chan struct{}, most)
	for {
		u, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				u.Close()
			}
			return nil
		}
		if errno, _ := errors.AsType[syscall.Errno](err); errno.Temporary() {
			s.Log.Error("no attach is accepted for a while", "reason", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
		running <- struct{}{} // others wait in the backlog
		attempts.Go(func() {
			defer func() { <-running }()
			defer u.Close()
			s.serveAttach(ctx, u)
		})
	}
}
