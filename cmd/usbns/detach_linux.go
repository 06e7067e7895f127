package main

import (
	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
)

func newDetach(dir *string) *cobra.Command {
	var port int
	cmd := &cobra.Command{
		Use:     "detach -p PORT",
		Short:   "Detach what is on a port of a controller",
		Example: "  usbns detach -p 0 -i alice",
		Args:    noArgs,
	}
	cmd.Flags().IntVarP(&port, "port", "p", 0, "port of the controller")
	ref := controllerFlag(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("port"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return control.NewClient(*dir).Detach(cmd.Context(), *ref, port)
	}
	return cmd
}
