package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/daemon"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

// addDaemon adds the daemon and the commands that talk to it.
func addDaemon(root *cobra.Command) {
	dir := os.Getenv("USBNS_RUN")
	if dir == "" {
		dir = "/run/usbns"
	}
	root.PersistentFlags().StringVar(&dir, "run", dir, "run directory of the daemon (environment: USBNS_RUN)")
	root.AddCommand(newDaemon(&dir), newController(&dir), newAttach(&dir), newDetach(&dir), newPort(&dir))
}

func newDaemon(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Hold controllers until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return daemon.Run(cmd.Context(), *dir, log, func() {
				fmt.Fprintln(cmd.OutOrStdout(), "ready in", *dir)
			})
		},
	}
}

func newController(dir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "controller", Short: "Make, list and delete controllers"}
	cmd.AddCommand(newControllerCreate(dir), newControllerList(dir), newControllerDelete(dir))
	return cmd
}

func newControllerCreate(dir *string) *cobra.Command {
	r := control.Create{}
	var owner string
	cmd := &cobra.Command{
		Use:     "create [NAME]",
		Short:   "Make controllers",
		Example: "  usbns controller create alice\n  usbns controller create --count 100 --ports 2 --owner 1000:1000",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				r.Name = args[0]
			}
			if r.UID, r.GID, err = parseOwner(owner); err != nil {
				return err
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
	cmd.Flags().StringVar(&r.Driver, "driver", "user", "what stands behind the ports: user keeps devices in user space")
	cmd.Flags().IntVar(&r.HubPorts, "ports", 0, "ports of each speed half, 1 to 15 (default 8)")
	cmd.Flags().StringVar(&owner, "owner", "0:0", "owner, as UID:GID")
	return cmd
}

func parseOwner(s string) (uid, gid uint32, err error) {
	u, g, _ := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(u, 10, 32)
	b, err2 := strconv.ParseUint(g, 10, 32)
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("--owner %s: want UID:GID, two numbers", s)
	}
	return uint32(a), uint32(b), nil
}

func newControllerList(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List controllers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := control.NewClient(*dir).Controllers(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "INDEX\tNAME\tDRIVER\tPORTS\tOWNER")
			for _, c := range list {
				fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d:%d\n", c.Index, or(c.Name, "-"), c.Driver, 2*c.HubPorts, c.UID, c.GID)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newControllerDelete(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "delete CONTROLLER...",
		Short: "Delete controllers, by index or name, and detach their devices",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := control.NewClient(*dir)
			for _, ref := range args {
				if err := client.Delete(cmd.Context(), ref); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// controllerFlag is the choice of a controller, the first one by default.
func controllerFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("controller", "i", "0", "controller, by index or name")
}

func newAttach(dir *string) *cobra.Command {
	var remote, busid string
	cmd := &cobra.Command{
		Use:     "attach -r HOST -b BUSID",
		Short:   "Attach a remote device to a controller",
		Example: "  usbns attach -r 127.0.0.1 -b 1-1 -i alice",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVarP(&remote, "remote", "r", "", "exporter, as HOST or HOST:PORT")
	cmd.Flags().StringVarP(&busid, "busid", "b", "", "device at the exporter")
	ref := controllerFlag(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("remote"))
	cobra.CheckErr(cmd.MarkFlagRequired("busid"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conn, err := usbip.Dial(cmd.Context(), remote)
		if err != nil {
			return err
		}
		defer conn.Close()
		info, err := usbip.RequestImport(cmd.Context(), conn, busid)
		if err != nil {
			return err
		}
		host, service, err := net.SplitHostPort(remote)
		if err != nil {
			host, service = remote, usbip.DefaultPort
		}
		port, err := control.NewClient(*dir).Attach(cmd.Context(), conn.(syscall.Conn), control.Attach{
			Controller: *ref, Port: control.AnyPort, DevID: info.DevID(), Speed: int(info.Speed),
			Remote: control.Remote{Host: host, Port: service, BusID: busid},
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "port %d\n", port)
		return nil
	}
	return cmd
}

func newDetach(dir *string) *cobra.Command {
	var port int
	cmd := &cobra.Command{
		Use:     "detach -p PORT",
		Short:   "Detach what is on a port of a controller",
		Example: "  usbns detach -p 0 -i alice",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().IntVarP(&port, "port", "p", 0, "port of the controller")
	ref := controllerFlag(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("port"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return control.NewClient(*dir).Detach(cmd.Context(), *ref, port)
	}
	return cmd
}

func newPort(dir *string) *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:     "port",
		Short:   "List what is attached to a controller, or to all",
		Example: "  usbns port -i alice\n  usbns port -a --json",
		Args:    cobra.NoArgs,
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
		fmt.Fprintf(w, "%d\t%d\t%v\t%04x:%04x\t%q\t%s:%s/%s\n", p.Controller, p.Number, vhci.Status(p.Status),
			p.Vendor, p.Product, p.ProductName, p.Remote.Host, p.Remote.Port, p.Remote.BusID)
	}
	return w.Flush()
}
