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
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
)

func main() {
	if process, ok := processes[filepath.Base(os.Args[0])]; ok {
		os.Exit(process())
	}
	os.Exit(run())
}

// personas are the names of the binary that stand for one of its commands.
var personas = map[string]string{"usbip": "usbip"}

// The exit statuses.
const (
	exitFailed   = 1 // it was tried, and failed or was refused
	exitUsage    = 2 // the arguments make no sense, and nothing was tried
	exitNoDaemon = 3 // there is no daemon, or none that may be used
)

// run returns the exit status, and prints the error if there is one.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	out := &output{File: os.Stdout}
	root.SetOut(out)
	if command, ok := personas[filepath.Base(os.Args[0])]; ok {
		root.SetArgs(append([]string{command}, os.Args[1:]...))
	}
	cmd, err := root.ExecuteContextC(ctx)
	if out.err != nil {
		err = triedError{out.err}
	}
	if err == nil {
		return 0
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	status := statusOf(err)
	hint := ""
	if status == exitUsage {
		hint = " (see: " + cmd.CommandPath() + " --help)"
	}
	text := strings.NewReplacer("\n\nDid you mean this?\n\t", "; did you mean ", "\n\t", " or ", "\n", "; ").Replace(strings.TrimSpace(err.Error()))
	fmt.Fprintf(os.Stderr, "usbns: error: %s%s\n", text, hint)
	return status
}

// An output remembers that it could not be written to: a command whose words are
// lost has failed, though it did not look.
type output struct {
	*os.File
	err error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.File.Write(b)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

func statusOf(err error) int {
	_, tried := errors.AsType[triedError](err)
	_, noDaemon := errors.AsType[*control.DialError](err)
	switch {
	case noDaemon:
		return exitNoDaemon
	case tried:
		return exitFailed
	}
	return exitUsage
}

// A triedError is the error of a command whose arguments are in order.
type triedError struct{ error }

func (e triedError) Unwrap() error { return e.error }

// A usageError is the error of a command that finds out by itself that its
// arguments are not.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// finish makes the same of all commands: errors tell whether something was
// tried, and an unknown command below another is one.
func finish(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		finish(c)
	}
	if cmd.HasParent() && cmd.HasSubCommands() {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return cmd.Help()
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			err := run(cmd, args)
			if _, usage := errors.AsType[usageError](err); err == nil || usage {
				return err
			}
			return triedError{err}
		}
	}
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
			"distribution among them.\n\n" +
			"Exit status: 0 if it is done, 1 if it failed or was refused, 2 if the arguments\n" +
			"make no sense, 3 if there is no daemon to use.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.AddCommand(newExport(), newList(), newMan(), newVersion())
	addDaemon(root)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" {
			c.Args, c.Example = helpArgs, "  usbns help controller create"
		}
	}
	finish(root)
	return root
}

// helpArgs wants the name of a command. Without it cobra prints its help, as if
// that had been asked for.
func helpArgs(cmd *cobra.Command, args []string) error {
	if _, rest, err := cmd.Root().Find(args); err != nil || len(rest) > 0 {
		return fmt.Errorf("there is no command %q", strings.Join(args, " "))
	}
	return nil
}

// noArgs is cobra.NoArgs, but that speaks of an unknown command.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument, and got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
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
