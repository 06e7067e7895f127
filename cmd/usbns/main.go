// Command usbns brings remote USB devices to where they are wanted, over
// USB/IP. "usbns help" tells its commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	if process, ok := processes[filepath.Base(os.Args[0])]; ok {
		os.Exit(process())
	}
	os.Exit(run())
}

// personas are the names of the binary that stand for one of its commands.
var personas = map[string]string{"usbip": "usbip"}

// run returns the exit status: 0, or 1 after an error, which it has printed.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	if command, ok := personas[filepath.Base(os.Args[0])]; ok {
		root.SetArgs(append([]string{command}, os.Args[1:]...))
	}
	err := root.ExecuteContext(ctx)
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "usbns: error:", err)
		return 1
	}
	return 0
}

// An exitStatus is the error of a command that has told what is wrong.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

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
	root.AddCommand(newExport(), newList(), newVersion())
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
