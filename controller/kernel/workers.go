//go:build linux

package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/usbns/usbns/worker"
)

// workers are the processes of all controllers, each connected as long as a
// device of it is in use here.
type workers struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex
	list map[int]*place
}

// A place is that of a controller's worker.
type place struct {
	index int
	users int // guarded by workers.mu

	mu sync.Mutex // held while it is started
	c  *worker.Client
}

func newWorkers(dir string, log *slog.Logger) *workers {
	return &workers{dir: dir, log: log, list: make(map[int]*place)}
}

func (ws *workers) path(index int) string { return filepath.Join(ws.dir, strconv.Itoa(index)) }

// get returns a controller's worker, which it starts if there is none and start
// is set. The caller gives back the place.
func (ws *workers) get(ctx context.Context, index int, start bool) (*place, *worker.Client, error) {
	ws.mu.Lock()
	p := ws.list[index]
	if p == nil {
		p = &place{index: index}
		ws.list[index] = p
	}
	p.users++
	ws.mu.Unlock()
	c, err := p.connect(ctx, ws, start)
	if err != nil {
		ws.put(p)
		return nil, nil, err
	}
	return p, c, nil
}

func (p *place) connect(ctx context.Context, ws *workers, start bool) (*worker.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.c != nil {
		select {
		case <-p.c.Dead():
			p.c = nil
		default:
			return p.c, nil
		}
	}
	path := ws.path(p.index)
	c, err := worker.Open(ctx, path)
	// One that does not answer has been killed.
	if err != nil && start && ctx.Err() == nil {
		c, err = worker.Start(ctx, path, func(exit error, output string) {
			ws.log.Warn("a worker has failed", "controller", fmt.Sprint("vhci_hcd.", p.index), "exit", exit, "output", output)
		})
	}
	p.c = c
	return c, err
}

// put leaves a worker alone that nobody uses any more. Without a device it ends.
func (ws *workers) put(p *place) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if p.users--; p.users > 0 {
		return
	}
	delete(ws.list, p.index)
	if p.c != nil {
		p.c.Close()
	}
}

// indexes returns the controllers that have, or had, a worker.
func (ws *workers) indexes() ([]int, error) {
	entries, err := os.ReadDir(ws.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var list []int
	for _, e := range entries {
		if index, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, index)
		}
	}
	return list, err
}
