package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/daemon"
)

// addDaemon adds the daemon and the commands that talk to it.
func addDaemon(root *cobra.Command) {
	dir := runDir()
	root.PersistentFlags().StringVar(&dir, "run", dir, "run directory of the daemon (environment: USBNS_RUN)")
	root.AddCommand(newDaemon(&dir), newController(&dir), newAttach(&dir), newDetach(&dir), newPort(&dir), newRun(&dir), newTransfer(&dir), newUsbip(), newDemo(), newDoctor(&dir), newConfig(&dir), newHook(&dir))
	addCompletion(root, &dir)
}

// runDir is where the daemon is, unless a command is told another place. In a
// container that has a controller it is where that one's sockets are.
func runDir() string {
	dir := "/run/usbns"
	if _, err := os.Stat(filepath.Join(control.OwnDir, control.Socket)); err == nil {
		dir = control.OwnDir
	}
	return cmp.Or(os.Getenv("USBNS_RUN"), dir)
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
			unix.Umask(0o022) // what it makes in containers is for all users there
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return daemon.Run(cmd.Context(), *dir, log, func() {
				fmt.Fprintln(cmd.OutOrStdout(), "ready in", *dir)
			})
		},
	}
}
