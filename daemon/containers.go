//go:build linux

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/usbns/usbns/container"
	"github.com/usbns/usbns/container/view"
	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/sysfs"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// ownCgroups are made for one container each, and removed after it.
	ownCgroups = cgroupRoot + "/usbns/"
)

// containers are those that have a controller.
type containers struct {
	keeper *view.Keeper
	files  *sysfs.Tree
	server *server.Server // of the host
	log    *slog.Logger

	tenants  *slog.Logger   // of what they can have logged
	restored chan struct{}  // closed when no port is waiting for its device
	serving  sync.WaitGroup // sockets in containers

	mu      sync.Mutex
	members map[*controller.Controller]*member
}

// A member is one of them. Its view is nil until it stands.
type member struct {
	owner
	cgroup string
	view   *view.View // guarded by containers.mu

	life   context.Context // of its sockets
	cancel context.CancelFunc
}

// record returns what is to be written down.
func (k *containers) record(c *controller.Controller) *owner {
	k.mu.Lock()
	defer k.mu.Unlock()
	if m := k.members[c]; m != nil {
		return &m.owner
	}
	return nil
}

func (k *containers) member(c *controller.Controller) (*member, *view.View) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.members[c]
	if m == nil {
		return nil, nil
	}
	return m, m.view
}

// Enter implements [server.Containers].
func (k *containers) Enter(c *controller.Controller, in control.Container) error {
	who, err := ownerOf(in)
	if err != nil {
		return enterError(c, syscall.ESRCH, err)
	}
	return k.enter(c, who)
}

func enterError(c *controller.Controller, errno syscall.Errno, err error) error {
	return &control.Error{Message: fmt.Sprintf("give %v to a container: %v", c, err), Errno: errno}
}

// enter fails if another process has the number of who before all is open.
func (k *containers) enter(c *controller.Controller, who owner) error {
	cgroup, err := cgroupOf(who.PID)
	if err != nil {
		return enterError(c, syscall.ESRCH, err)
	}
	if cgroup == cgroupRoot {
		return enterError(c, syscall.EINVAL, fmt.Errorf("process %d is in no cgroup of its own", who.PID))
	}
	m := &member{owner: who, cgroup: cgroup}
	m.life, m.cancel = context.WithCancel(context.Background())
	k.mu.Lock()
	if k.members[c] != nil {
		k.mu.Unlock()
		m.cancel()
		return enterError(c, syscall.EBUSY, errors.New("another container has it"))
	}
	for other, o := range k.members {
		if o.cgroup == cgroup { // by which its end is known, and there is one /dev/usbns
			k.mu.Unlock()
			m.cancel()
			return enterError(c, syscall.EBUSY, fmt.Errorf("it has %v, and a container has one controller", other))
		}
	}
	k.members[c] = m
	k.mu.Unlock()
	if err := k.stand(c, m); err != nil {
		k.drop(c, m)
		return enterError(c, syscall.EIO, err)
	}
	return nil
}

// stand makes all of a container's view stand, and sees to its end.
func (k *containers) stand(c *controller.Controller, m *member) error {
	hubs, err := c.RootHubs()
	if err != nil {
		return err
	}
	v, err := view.Open(view.Config{
		PID: m.PID, Root: m.Root, Cgroup: m.cgroup, UID: c.Config().UID, GID: c.Config().GID, RootUID: m.RootUID, Hubs: hubs,
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	m.view = v
	k.mu.Unlock()
	k.keeper.Keep(v)
	if err := k.bind(c, m); err != nil {
		return err
	}
	if err := m.still(); err != nil {
		return err
	}
	if err := k.serve(c, m, v); err != nil {
		return err
	}
	if err := c.Save(); err != nil {
		return err
	}
	return k.keeper.WhenEmpty(m.cgroup, func() {
		k.log.Info("container has ended", "controller", c.String(), "cgroup", m.cgroup)
		k.end(c, m)
	})
}

func (k *containers) bind(c *controller.Controller, m *member) error {
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", m.PID))
	if err != nil {
		return err
	}
	defer namespace.Close()
	root := m.Root
	if root == "/" {
		root = ""
	}
	return container.BindController(container.Binding{
		Dir: k.files.NamelessDir(c), Server: k.files.Server(), Namespace: namespace, Root: root,
	})
}

// serve gives a container sockets of its own, which only its controller is behind.
// Clients wait there until a new attach cannot take an earlier one's port.
func (k *containers) serve(c *controller.Controller, m *member, v *view.View) error {
	dir := strings.TrimPrefix(control.OwnDir, "/dev/")
	api, err := v.Listen("unix", filepath.Join(dir, control.Socket))
	if err != nil {
		return err
	}
	attach, err := v.Listen("unixpacket", filepath.Join(dir, control.AttachSocket))
	if err != nil {
		api.Close()
		return err
	}
	k.serving.Go(func() {
		select {
		case <-k.restored:
		case <-m.life.Done():
		}
		s := k.server.Only(c)
		s.Log = k.tenants
		if err := s.Serve(m.life, api, attach); err != nil {
			k.log.Error("a container is left without its sockets", "controller", c.String(), "reason", err)
		}
	})
	return nil
}

// drop forgets a container. It returns false if that was done.
func (k *containers) drop(c *controller.Controller, m *member) bool {
	k.mu.Lock()
	if k.members[c] != m {
		k.mu.Unlock()
		return false
	}
	delete(k.members, c)
	v := m.view
	k.mu.Unlock()
	m.cancel()
	if v != nil {
		k.keeper.Drop(v)
		if err := v.Close(); err != nil {
			k.log.Warn("a container is not let go of", "controller", c.String(), "reason", err)
		}
	}
	return true
}

// Leave implements [server.Containers].
func (k *containers) Leave(c *controller.Controller, pid int) error {
	if m, _ := k.member(c); m != nil && m.PID == pid {
		k.end(c, m)
	}
	return nil
}

// Find implements [server.Containers].
func (k *containers) Find(c *controller.Controller) (control.Container, error) {
	m, v := k.member(c)
	if v == nil {
		return control.Container{}, &control.Error{
			Message: fmt.Sprintf("no container has %v (give it to one: usbns run, or usbns config)", c), Errno: syscall.ENOENT,
		}
	}
	if err := m.still(); err != nil {
		return control.Container{}, &control.Error{Message: fmt.Sprintf("the container of %v has ended: %v", c, err), Errno: syscall.ESRCH}
	}
	return m.Container, nil
}

// end detaches what a container had.
func (k *containers) end(c *controller.Controller, m *member) {
	if !k.drop(c, m) {
		return
	}
	if strings.HasPrefix(m.cgroup, ownCgroups) {
		defer func() {
			_ = os.Remove(m.cgroup) // whoever made it may have been faster
			_ = os.Remove(ownCgroups)
		}()
	}
	if m.Temporary {
		// Somebody may have deleted it.
		if err := k.server.Table.Delete(c); err != nil && !errors.Is(err, syscall.ENOENT) {
			k.log.Warn("the controller of a container that has ended is left", "reason", err)
		}
	} else {
		for _, p := range c.Ports() {
			if !p.Free() {
				_ = c.Detach(p.Number) // it may be free by now
			}
		}
		if err := c.Save(); err != nil && !errors.Is(err, syscall.ENOENT) {
			k.log.Error("state cannot be written", "controller", c.String(), "reason", err)
		}
	}
}

// ready shows a device to the container of its controller, if it has one.
func (k *containers) ready(c *controller.Controller, port int, a controller.Attachment) (undo func(), err error) {
	m, v := k.member(c)
	if m == nil || a.Path() == "" {
		return nil, nil
	}
	if v == nil {
		return nil, errors.New("its container is not ready")
	}
	if err := k.keeper.Sync(); err != nil {
		k.tenants.Warn("containers do not see their devices as they are", "controller", c.String(), "port", port, "reason", err)
	}
	remove, err := v.Add(port, a.Path())
	if err != nil {
		return nil, err
	}
	return func() {
		if err := remove(); err != nil {
			k.tenants.Warn("a device that is gone is still shown", "controller", c.String(), "port", port, "reason", err)
		}
	}, nil
}

// allowed tells whether a process may attach to a controller.
func (k *containers) allowed(c *controller.Controller, pid int) error {
	m, _ := k.member(c)
	if m == nil {
		return nil
	}
	cgroup, err := cgroupOf(pid)
	if err != nil {
		return err
	}
	if cgroup != m.cgroup && !strings.HasPrefix(cgroup, m.cgroup+"/") {
		return fmt.Errorf("process %d is in cgroup %s, and the controller is for %s: %w", pid, cgroup, m.cgroup, syscall.EPERM)
	}
	return nil
}

// restore finds a container of an earlier daemon. It returns false if its devices
// must not be restored: it has ended, or does not stand.
func (k *containers) restore(c *controller.Controller, in owner) bool {
	err := in.still()
	if err == nil {
		in.Root = "/" // it has moved there since
		err = k.enter(c, in)
	}
	if err == nil {
		return true
	}
	k.log.Warn("a container of the earlier daemon is given up", "controller", c.String(), "reason", err)
	return false
}

// close lets go of all containers, which go on.
func (k *containers) close() error {
	err := k.keeper.Close()
	k.mu.Lock()
	for _, m := range k.members {
		m.cancel()
	}
	k.mu.Unlock()
	k.serving.Wait() // an attach that ends takes back what it has shown
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.members {
		if m.view != nil {
			err = errors.Join(err, m.view.Close())
		}
	}
	return err
}

// cgroupOf returns the directory of a process's cgroup of version 2.
func cgroupOf(pid int) (string, error) {
	if pid <= 0 {
		return "", fmt.Errorf("no process %d", pid)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok {
			return filepath.Join(cgroupRoot, path), nil
		}
	}
	return "", fmt.Errorf("process %d is in no cgroup of version 2", pid)
}
