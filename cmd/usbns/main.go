// Command usbns brings remote USB devices to where they are wanted, over
// USB/IP. "usbns help" tells its commands.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run()) }

// run returns the exit status: 0, or 1 after an error, which it has printed.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "usbns: error:", err)
		return 1
	}
	return 0
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "usbns",
		Short: "Remote USB devices, each where it belongs",
		Long: "usbns exports USB devices over USB/IP, finds those that others export, and gives\n" +
			"each user a controller of its own to attach them to.\n" +
			"Any USB/IP importer can attach what it exports, the usbip of every Linux\n" +
			"distribution among them.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.AddCommand(newExport(), newList(), newDemo(), newVersion())
	addDaemon(root)
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "usbns", version())
		},
	}
}

// version is the module's version as the toolchain recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
