package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/daemon"
)

// addDaemon adds the daemon and the commands that talk to it.
func addDaemon(root *cobra.Command) {
	dir := runDir()
	root.PersistentFlags().StringVar(&dir, "run", dir, "run directory of the daemon (environment: USBNS_RUN)")
	root.AddCommand(newDaemon(&dir), newController(&dir), newAttach(&dir), newDetach(&dir), newPort(&dir), newRun(&dir), newTransfer(&dir), newUsbip(), newDemo(), newDoctor(&dir), newConfig(&dir), newHook(&dir))
	addCompletion(root, &dir)
}

// runDir is where the daemon is, unless a command is told another place.
func runDir() string {
	return cmp.Or(os.Getenv("USBNS_RUN"), "/run/usbns")
}

func newDaemon(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Hold controllers until interrupted",
		Long: "Hold controllers until interrupted, and serve in the run directory the sockets that other commands use and,\n" +
			"as root, the control files of each controller. Controllers, and devices that are in the kernel, are there\n" +
			"again with the next daemon. It logs to standard error, a line an event.",
		Example: "  usbns daemon\n  usbns daemon --run \"$XDG_RUNTIME_DIR/usbns\"   # without root: no control files",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return daemon.Run(cmd.Context(), *dir, log, func() {
				fmt.Fprintln(cmd.OutOrStdout(), "ready in", *dir)
			})
		},
	}
}
