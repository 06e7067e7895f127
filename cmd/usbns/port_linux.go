package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/vhci"
)

func newPort(dir *string) *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:     "port",
		Short:   "List what is attached to a controller, or to all",
		Example: "  usbns port -i alice\n  usbns port -a --json",
		Args:    noArgs,
	}
	ref := controllerFlag(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all controllers")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("controller", "all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client := control.NewClient(*dir)
		list := make([]control.Controller, 1)
		var err error
		if all {
			list, err = client.Controllers(cmd.Context())
		} else {
			list[0], err = client.Controller(cmd.Context(), *ref)
		}
		if err != nil {
			return err
		}
		used := []attached{}
		for _, c := range list {
			ports, err := client.Ports(cmd.Context(), strconv.Itoa(c.Index))
			if all && errors.Is(err, syscall.ENOENT) {
				continue // deleted meanwhile
			}
			if err != nil {
				return err
			}
			for _, p := range ports {
				if p.Status != int(vhci.StatusNull) {
					used = append(used, attached{c.Index, p})
				}
			}
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), used)
		}
		return printPorts(cmd.OutOrStdout(), used)
	}
	return cmd
}

// attached is a port in use, of a controller.
type attached struct {
	Controller int `json:"controller"`
	control.Port
}

func printPorts(out io.Writer, used []attached) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CONTROLLER\tPORT\tSTATE\tDEVICE\tPRODUCT\tFROM")
	for _, p := range used {
		fmt.Fprintf(w, "%d\t%d\t%v\t%04x:%04x\t%q\t%s\n", p.Controller, p.Number, vhci.Status(p.Status),
			p.Vendor, p.Product, p.ProductName, from(p.Remote))
	}
	return w.Flush()
}

// from is as much as whoever attached a device has told of where it comes from: a
// control file is not told the busid.
func from(r control.Remote) string {
	switch {
	case r.Host == "":
		return "-"
	case r.BusID == "":
		return net.JoinHostPort(r.Host, r.Port)
	}
	return net.JoinHostPort(r.Host, r.Port) + "/" + r.BusID
}
