package main

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/usbip"
)

func newAttach(dir *string) *cobra.Command {
	var remote, busid string
	cmd := &cobra.Command{
		Use:     "attach -r HOST -b BUSID",
		Short:   "Attach a remote device to a controller",
		Example: "  usbns attach -r 127.0.0.1 -b 1-1 -i alice",
		Args:    noArgs,
	}
	cmd.Flags().StringVarP(&remote, "remote", "r", "", "exporter, as HOST or HOST:PORT")
	cmd.Flags().StringVarP(&busid, "busid", "b", "", "device at the exporter")
	ref := controllerFlag(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("remote"))
	cobra.CheckErr(cmd.MarkFlagRequired("busid"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := usbip.CheckBusID(busid); err != nil {
			return usageError{fmt.Errorf("--busid: %w", err)}
		}
		conn, err := dial(cmd.Context(), remote)
		if err != nil {
			return err
		}
		defer conn.Close()
		info, err := usbip.RequestImport(cmd.Context(), conn, busid)
		if errors.Is(err, usbip.OpNoDevice) || errors.Is(err, usbip.OpBusy) {
			return fmt.Errorf("%w (what is free: usbns list -r %s)", err, remote)
		}
		if err != nil {
			return err
		}
		host, service := usbip.SplitAddr(remote)
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
