package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/container/hook"
	"github.com/usbns/usbns/container/view"
	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/uevent"
)

func newHook(dir *string) *cobra.Command {
	var events bool
	cmd := &cobra.Command{
		Use:   "hook lxc|oci",
		Short: "Give a controller to a container that starts; called by its runtime",
		Long: "Gives a controller to a container that starts, and hides all other USB devices from it. Container runtimes\n" +
			"call this, see usbns config. When the container ends its devices are detached.\n\n" +
			"A container that hears the kernel's events would hear of everybody's devices, so it must have a user namespace\n" +
			"and a network namespace in that.",
		Example: "  usbns hook lxc -i alice                 # as lxc.hook.start-host\n  usbns hook oci -i alice <state.json     # as createRuntime",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == "lxc" {
				return nil // LXC adds words of its own
			}
			return oneOfValidArgs(cmd, args)
		},
		ValidArgs: []string{"lxc", "oci"},
	}
	ref := controllerFlag(cmd)
	cmd.Flags().BoolVar(&events, "allow-events", false, "take a container that hears the kernel's events of all devices")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var c hook.Container
		var err error
		if args[0] == "lxc" {
			c, err = hook.ReadLXC(os.Getenv)
		} else {
			c, err = hook.ReadOCI(cmd.InOrStdin())
		}
		if err != nil {
			return err
		}
		if !events {
			if err := checkSilent(c.PID); err != nil {
				return fmt.Errorf("container %s: %w", c.ID, err)
			}
		}
		root, err := rootUser(c.PID)
		if err != nil {
			return fmt.Errorf("container %s: %w", c.ID, err)
		}
		namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", c.PID))
		if err != nil {
			return err
		}
		defer namespace.Close()
		if err := view.Cover(namespace, c.Root); err != nil {
			return fmt.Errorf("container %s: %w", c.ID, err)
		}
		if root != 0 {
			if err := view.ReplaceDev(namespace, c.Root, root); err != nil {
				return fmt.Errorf("container %s: %w", c.ID, err)
			}
		}
		return control.NewClient(*dir).Enter(cmd.Context(), *ref, control.Container{PID: c.PID, Root: c.Root, RootUID: root})
	}
	return cmd
}

// checkSilent makes sure that the kernel tells no events where the process is.
func checkSilent(pid int) error {
	netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer netns.Close()
	heard, err := uevent.Heard(netns)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	if heard {
		return errors.New("it would hear of the devices of all: give it a user namespace and a network namespace of its own " +
			"(or take it as it is, with usbns hook --allow-events)")
	}
	return nil
}

// rootUser is who is root in the process's user namespace.
func rootUser(pid int) (uint32, error) {
	path := fmt.Sprintf("/proc/%d/uid_map", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, n uint32
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil && inside == 0 {
			return outside, nil
		}
	}
	return 0, fmt.Errorf("%s maps no root", path)
}
