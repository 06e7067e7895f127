package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
)

func newController(dir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "controller", Short: "Make, list and delete controllers"}
	cmd.AddCommand(newControllerCreate(dir), newControllerList(dir), newControllerDelete(dir))
	return cmd
}

func newControllerCreate(dir *string) *cobra.Command {
	r := control.Create{}
	var owner string
	var direct bool
	cmd := &cobra.Command{
		Use:   "create [NAME]",
		Short: "Make controllers",
		Long: "Make controllers and print their indexes.\n\n" +
			"The policy judges each device before it is used. It says which classes a device's functions may have:\n" +
			strings.Join(classWords(), ", ") + ".\n" +
			"With driver user all are allowed; with driver kernel all but network, hub, bluetooth, storage and keyboard.\n" +
			"A device may be named as VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL too.",
		Example: "  usbns controller create alice\n" +
			"  usbns controller create --count 100 --ports 2 --owner 1000:1000\n" +
			"  usbns controller create --driver kernel --allow storage --max-devices 2 bob\n" +
			"  usbns controller create --exclusive dave\n" +
			"  usbns controller create --deny all --allow 0483:5740 carol",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				if r.Name = args[0]; r.Name == "" { // which would be a controller without a name
					return usageError{errors.New("NAME is empty")}
				}
			}
			if r.UID, r.GID, err = parseOwner(owner); err != nil {
				return usageError{err}
			}
			if r.Count < 1 {
				return usageError{fmt.Errorf("--count %d: want 1 or more", r.Count)}
			}
			if r.Driver, err = exclusiveDriver(cmd, r); err != nil {
				return err
			}
			if direct {
				r.Driver += "-direct" // there is only the kernel's
			}
			made, err := control.NewClient(*dir).Create(cmd.Context(), r)
			if err != nil {
				return err
			}
			for _, c := range made {
				fmt.Fprintln(cmd.OutOrStdout(), c.Index)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&r.Count, "count", 1, "how many to make")
	cmd.Flags().StringVar(&r.Driver, "driver", "user", "what stands behind the ports: user keeps devices in user space, kernel gives them to this machine's kernel")
	cmd.Flags().BoolVar(&direct, "direct", false, "hand connections to the kernel unchecked, for exporters you trust (with driver kernel)")
	cmd.Flags().BoolVar(&r.Exclusive, "exclusive", false, "take a whole controller of the kernel, which has few (with driver kernel)")
	cmd.Flags().IntVar(&r.HubPorts, "ports", 0, "ports of each speed half, 1 to 15 (default 8)")
	cmd.Flags().StringSliceVar(&r.Allow, "allow", nil, "classes and devices to take beside those of the driver's default")
	cmd.Flags().StringSliceVar(&r.Deny, "deny", nil, "classes and devices not to take; what is allowed as well is taken")
	cmd.Flags().IntVar(&r.MaxDevices, "max-devices", 0, "devices at the same time (default: as many as there are ports)")
	cmd.Flags().StringVar(&r.MaxSpeed, "max-speed", "", "highest speed: low, full, high, super or super-plus (default: any)")
	cmd.Flags().StringVar(&owner, "owner", "0:0", "owner, as UID:GID")
	cmd.MarkFlagsMutuallyExclusive("exclusive", "ports")
	return cmd
}

// exclusiveDriver is the driver that is asked for; that of an exclusive
// controller goes without saying.
func exclusiveDriver(cmd *cobra.Command, r control.Create) (string, error) {
	switch {
	case !r.Exclusive || r.Driver == "kernel":
		return r.Driver, nil
	case cmd.Flags().Changed("driver"):
		return "", usageError{fmt.Errorf("--exclusive takes one of the kernel's controllers, which driver %s has no use for (leave --driver out, or say kernel)", r.Driver)}
	}
	return "kernel", nil
}

func parseOwner(s string) (uid, gid uint32, err error) {
	u, g, _ := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(u, 10, 32)
	b, err2 := strconv.ParseUint(g, 10, 32)
	const nobody = 1<<32 - 1 // which chown(2) takes for no change
	if err1 != nil || err2 != nil || a == nobody || b == nobody {
		return 0, 0, fmt.Errorf("--owner %s: want UID:GID, two numbers", s)
	}
	return uint32(a), uint32(b), nil
}

func newControllerList(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List controllers",
		Example: "  usbns controller list\n  usbns controller list --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := control.NewClient(*dir).Controllers(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "INDEX\tNAME\tDRIVER\tPORTS\tOWNER\tEXCLUSIVE")
			for _, c := range list {
				fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d:%d\t%s\n", c.Index, or(c.Name, "-"), c.Driver, 2*c.HubPorts, c.UID, c.GID, or(c.Exclusive, "-"))
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newControllerDelete(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "delete CONTROLLER...",
		Short:   "Delete controllers, by index or name, and detach their devices",
		Example: "  usbns controller delete alice 7",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := control.NewClient(*dir)
			var failed []error
			for _, ref := range args {
				err := client.Delete(cmd.Context(), ref)
				if _, down := errors.AsType[*control.DialError](err); down {
					return err
				}
				failed = append(failed, err)
			}
			return errors.Join(failed...)
		},
	}
}

// controllerFlag is the choice of a controller, the first one by default.
func controllerFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("controller", "i", "0", "controller, by index or name")
}
