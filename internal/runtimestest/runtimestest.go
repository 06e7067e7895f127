//go:build linux

// Package runtimestest starts containers of LXC, runc and crun for guest tests:
// Debian's own programs, from the tree "runtimes" of vmexec.
//
//	//vmexec:tree runtimes
//	//vmexec:modules overlay
//
// The guest's own root, under an overlay that is forgotten, is the containers'
// root, so whatever the guest has can be run inside, the test binary among it.
// A container has what its runtime gives by default: Debian's common.conf of
// LXC, and the namespaces, mounts and capabilities that Docker would ask runc
// for. Its first process sleeps; a test runs programs beside it.
//
// It is not a way to run containers: names, images and networks are missing.
package runtimestest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience ends a program that hangs. A start takes seconds under emulation.
const patience = 60 * time.Second

// A Runtime is one of the programs that start containers.
type Runtime string

// The runtimes of Debian 12.
const (
	LXC  Runtime = "lxc"
	Runc Runtime = "runc"
	Crun Runtime = "crun"
)

// All are the runtimes there are.
var All = []Runtime{LXC, Runc, Crun}

// SubID is the user and group outside that is root in a container with a user
// namespace.
const SubID = 100000

// Config is what differs from the default.
type Config struct {
	// Name must be unique among the containers that run.
	Name string
	// UserNS gives the container a user namespace.
	UserNS bool
	// LXC are more lines of the configuration file.
	LXC string
	// OCI is JSON to be merged into config.json: objects by their members,
	// arrays by adding to the end.
	OCI string
}

// A Container runs until the test ends or Stop is called.
type Container struct {
	Runtime Runtime
	Name    string
	// Rootfs is the container's root as a directory of the guest.
	Rootfs string

	t   *testing.T
	dir string
	program
	stopped bool
}

// A program drives one kind of runtime.
type program interface {
	start() error
	pid() (int, error)
	// attach gives the command that runs another inside.
	attach(argv []string) []string
	update() error
	stop() error
}

// Start starts a container, and stops it when the test ends.
func Start(t *testing.T, r Runtime, cfg Config) *Container {
	t.Helper()
	dir, err := os.MkdirTemp("", "rt")
	if err != nil {
		t.Fatal(err)
	}
	c := &Container{Runtime: r, Name: cfg.Name, Rootfs: filepath.Join(dir, "rootfs"), t: t, dir: dir}
	t.Cleanup(c.Stop)
	if err := c.mountRoot(cfg.UserNS); err != nil {
		t.Fatal(err)
	}
	if r == LXC {
		c.program = &lxc{dir: dir, name: cfg.Name, cfg: cfg}
	} else {
		c.program = &oci{runtime: r, dir: dir, name: cfg.Name, cfg: cfg}
	}
	if err := c.start(); err != nil {
		t.Fatalf("start a container of %s: %v", r, err)
	}
	return c
}

// mountRoot lays an overlay over the guest's root.
func (c *Container) mountRoot(userNS bool) error {
	upper, work := filepath.Join(c.dir, "upper"), filepath.Join(c.dir, "work")
	for _, dir := range []string{upper, work, c.Rootfs} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if userNS {
		// The root directory is the container's, the rest is there to be read.
		if err := os.Chown(upper, SubID, SubID); err != nil {
			return err
		}
	}
	if err := os.Chmod(c.dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("rootfs", c.Rootfs, "overlay", 0, "lowerdir=/,upperdir="+upper+",workdir="+work)
	if err != nil {
		return fmt.Errorf("mount the root of a container: %w", err)
	}
	return nil
}

// PID is the container's first process, as the guest numbers it.
func (c *Container) PID() int {
	c.t.Helper()
	pid, err := c.pid()
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// Command is a program to be run inside. It has ended when its output has; its
// exit status is not known with crun.
func (c *Container) Command(ctx context.Context, argv ...string) *exec.Cmd {
	argv = c.attach(argv)
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

// Run runs a program inside and gives what it prints. Its exit status is not known
// with crun.
func (c *Container) Run(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := c.Command(ctx, argv...)
	cmd.WaitDelay = time.Second // what it left may hold its output open
	if c.Runtime == Crun {      // it goes on when the command has ended
		cmd.WaitDelay = patience
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(c.dir, "log")) // of the runtime, if it has anything to say
		out = append(out, log...)
	}
	return string(out), err
}

// Update has the runtime change a limit of the container's cgroup.
func (c *Container) Update() {
	c.t.Helper()
	if err := c.update(); err != nil {
		c.t.Errorf("update a container of %s: %v", c.Runtime, err)
	}
}

// Stop kills what runs in the container and removes it. It can be called again.
func (c *Container) Stop() {
	c.t.Helper()
	if c.stopped {
		return
	}
	c.stopped = true
	if c.program != nil {
		if err := c.stop(); err != nil {
			c.t.Errorf("stop a container of %s: %v", c.Runtime, err)
		}
	}
	if err := unix.Unmount(c.Rootfs, 0); err != nil {
		c.t.Errorf("unmount the root of a container: %v", err)
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Error(err)
	}
}

// run is for the runtimes' own programs. A container keeps what it inherits, so
// their output goes to a file.
func run(dir, name string, args ...string) (string, error) {
	out, err := os.CreateTemp(dir, "output")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text, readErr := os.ReadFile(out.Name())
	if readErr != nil {
		return "", readErr
	}
	said := strings.TrimSpace(string(text))
	if err != nil {
		return said, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said)
	}
	return said, nil
}
