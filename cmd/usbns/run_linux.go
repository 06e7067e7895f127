package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/container/box"
	"github.com/usbns/usbns/control"
)

// The users of containers, as systemd's UIDS-GIDS has them.
const (
	firstContainerUID = 524288
	containerUIDs     = 1 << 16
	containerRanges   = 28663
)

// runCgroups has a cgroup for each container.
const runCgroups = "/sys/fs/cgroup/usbns"

type runOptions struct {
	dir, ref string
	create   control.Create
	isNew    bool
	userNS   bool
	owner    string
}

func newRun(dir *string) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run (-i CONTROLLER | --new | --exclusive) [FLAGS] -- COMMAND [ARG...]",
		Short: "Run a command with a controller of its own",
		Long: "Run a command in namespaces of its own, where a controller is vhci_hcd.0 and the devices that are attached\n" +
			"to it are the only USB devices. Its files are those of this machine; its network has nothing but lo, so attach\n" +
			"from outside. When the command ends its devices are detached, and the exit status is the command's.\n\n" +
			"Without --userns root in the container is root of this machine's files.",
		Example: "  usbns run --new --driver kernel -- sh\n  usbns run --exclusive -- sh\n  usbns run -i alice --userns -- lsusb",

		DisableFlagsInUseLine: true,
		Args:                  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.dir = *dir
			o.isNew = o.isNew || o.create.Exclusive
			if _, err := exclusiveDriver(cmd, o.create); err != nil {
				return err
			}
			if err := o.parseOwner(); err != nil {
				return usageError{err}
			}
			status, err := o.run(context.WithoutCancel(cmd.Context()), args)
			if err != nil {
				return err
			}
			if status != 0 {
				return exitStatus(status)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&o.ref, "controller", "i", "", "controller, by index or name")
	cmd.Flags().BoolVar(&o.isNew, "new", false, "make a controller, and delete it afterwards")
	cmd.Flags().BoolVar(&o.create.Exclusive, "exclusive", false, "make one that takes a whole controller of the kernel, which has few")
	cmd.Flags().StringVar(&o.create.Driver, "driver", "kernel", "what stands behind a new controller: user or kernel")
	cmd.Flags().StringSliceVar(&o.create.Allow, "allow", nil, "classes and devices for a new controller to take beside those of the default")
	cmd.Flags().BoolVar(&o.userNS, "userns", false, "run in a user namespace of its own, too")
	cmd.Flags().StringVar(&o.owner, "owner", "0:0", "who in the container owns a new controller and its devices, as UID:GID")
	cmd.MarkFlagsOneRequired("controller", "new", "exclusive")
	cmd.MarkFlagsMutuallyExclusive("controller", "new")
	cmd.MarkFlagsMutuallyExclusive("controller", "exclusive")
	cmd.MarkFlagsMutuallyExclusive("controller", "driver")
	cmd.MarkFlagsMutuallyExclusive("controller", "allow")
	cmd.MarkFlagsMutuallyExclusive("controller", "owner")
	cmd.Flags().SetInterspersed(false) // flags behind COMMAND are its own
	return cmd
}

func (o *runOptions) parseOwner() (err error) {
	o.create.UID, o.create.GID, err = parseOwner(o.owner)
	if err == nil && o.userNS && max(o.create.UID, o.create.GID) >= containerUIDs {
		err = fmt.Errorf("--owner %s: a user namespace has users and groups below %d", o.owner, containerUIDs)
	}
	return err
}

// run returns the exit status of the command.
func (o *runOptions) run(ctx context.Context, argv []string) (status int, err error) {
	client := control.NewClient(o.dir)
	root, err := o.rootUser(ctx, client)
	if err != nil {
		return 0, err
	}
	entered := false
	if o.isNew {
		o.create.UID += root
		o.create.GID += root
		made, err := client.Create(ctx, o.create)
		if err != nil {
			return 0, err
		}
		o.ref = strconv.Itoa(made[0].Index)
		defer func() {
			if !entered { // afterwards it ends with the container
				err = errors.Join(err, client.Delete(ctx, o.ref))
			}
		}()
	}
	cgroup, err := makeCgroup()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, removeCgroup(cgroup)) }()
	if err := os.Unsetenv("USBNS_RUN"); err != nil { // in the container it is another
		return 0, err
	}
	b, err := box.Start(box.Config{
		Argv: argv, Cgroup: cgroup, Hidden: []string{o.dir}, UserNS: root,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err != nil {
		return 0, err
	}
	err = client.Enter(ctx, o.ref, control.Container{PID: b.PID(), Root: "/", RootUID: root, Temporary: o.isNew, Keeper: true})
	if err != nil {
		return 0, errors.Join(err, b.Kill())
	}
	entered = true
	pid := b.PID()
	if err := b.Run(); err != nil {
		return 0, errors.Join(err, b.Kill(), client.Leave(ctx, o.ref, pid))
	}
	if status, err = supervise(b); err != nil {
		return 0, err
	}
	err = client.Leave(ctx, o.ref, pid)
	if _, dead := errors.AsType[*control.DialError](err); dead || errors.Is(err, unix.ENOENT) {
		err = nil // the daemon, or the next one, has seen that the container has ended
	}
	return status, err
}

// supervise passes signals on until the container ends. What a terminal sends
// reaches the command by itself.
func supervise(b *box.Box) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = b.Signal(s) // it may have ended
			case <-ended:
				return
			}
		}
	}()
	return b.Wait()
}

// makeCgroup makes a cgroup for one container, of a name that none had before:
// the daemon may still be at removing that of an earlier one.
func makeCgroup() (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(runCgroups), &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", fmt.Errorf("make a cgroup: %s has no cgroups of version 2 (boot with systemd.unified_cgroup_hierarchy=1)", filepath.Dir(runCgroups))
	}
	for {
		err := os.MkdirAll(runCgroups, 0o755)
		if err == nil {
			var dir string
			if dir, err = os.MkdirTemp(runCgroups, "run-"); err == nil {
				return dir, os.Chmod(dir, 0o755)
			}
		}
		if !errors.Is(err, os.ErrNotExist) { // the last container has just removed the parent
			return "", fmt.Errorf("make a cgroup: %w (it needs root)", err)
		}
	}
}

func removeCgroup(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, os.ErrNotExist) { // the daemon has done it
		err = nil
	}
	_ = os.Remove(runCgroups) // others may be in it
	return err
}

// rootUser chooses who is root in the container. In a user namespace it is the
// owner of the controller that is there, or a user that no controller has.
func (o *runOptions) rootUser(ctx context.Context, client *control.Client) (uint32, error) {
	if !o.isNew {
		c, err := client.Controller(ctx, o.ref)
		if err != nil || !o.userNS {
			return 0, err
		}
		if c.UID < firstContainerUID {
			return 0, fmt.Errorf("the controller is owned by user %d, who is root in the container, so let it be %d or above (make it with: usbns controller create --owner UID:UID)",
				c.UID, firstContainerUID)
		}
		return c.UID, nil
	}
	if !o.userNS {
		return 0, nil
	}
	list, err := client.Controllers(ctx)
	if err != nil {
		return 0, err
	}
	taken := make(map[uint32]bool)
	for _, c := range list {
		taken[c.UID/containerUIDs] = true
	}
	for range containerRanges {
		first := uint32(firstContainerUID + rand.N(containerRanges)*containerUIDs)
		if !taken[first/containerUIDs] {
			return first, nil
		}
	}
	return 0, errors.New("no users are left for a user namespace (delete controllers, or run without --userns)")
}
