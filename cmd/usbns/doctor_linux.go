package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/doctor"
)

func newDoctor(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [CONTAINER]",
		Short: "Tell what works on this host, or what a container is kept from, and how to mend the rest",
		Long: "Try what usbns needs of this host and tell what works, what needs it, and how to\n" +
			"mend what does not. Of a container, which is named by its controller, tell what is\n" +
			"private to it, what is not, and why. Nothing is changed. The exit status is 1 if\n" +
			"something does not work, or is not private, at all; what is so partly is told only.",
		Example: "  sudo usbns doctor\n  sudo usbns doctor alice\n" +
			"  usbns doctor --json | jq -r '.[] | select(.state == \"no\") | .mend'",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeControllers(dir),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var checks []doctor.Check
			if len(args) == 0 {
				checks = examineHost(cmd.Context(), *dir)
			} else {
				c, err := findContainer(cmd.Context(), *dir, args[0])
				if err != nil {
					return err
				}
				checks = c.Examine(cmd.Context())
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), checks)
			} else {
				err = printChecks(cmd.OutOrStdout(), checks)
			}
			if err == nil && slices.ContainsFunc(checks, func(c doctor.Check) bool { return c.State == doctor.No }) {
				err = exitStatus(exitFailed)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func examineHost(ctx context.Context, dir string) []doctor.Check {
	host := doctor.Host{RunDir: dir, Answers: func(ctx context.Context) error {
		_, err := control.NewClient(dir).Controllers(ctx)
		return err
	}}
	return host.Examine(ctx)
}

// findContainer asks the daemon for a container.
func findContainer(ctx context.Context, dir, ref string) (c *doctor.Container, err error) {
	client := control.NewClient(dir)
	c = &doctor.Container{Host: doctor.Host{RunDir: dir}}
	if c.Controller, err = client.Controller(ctx, ref); err != nil {
		return nil, err
	}
	if c.Container, err = client.Container(ctx, ref); err != nil {
		return nil, err
	}
	c.Ports, err = client.Ports(ctx, ref)
	return c, err
}

func printChecks(out io.Writer, checks []doctor.Check) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tSTATE\tFOR\tFOUND")
	for _, c := range checks {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Name, c.State, c.For, c.Found)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the checks: %w", err)
	}
	title := "\nTo mend:\n"
	for _, c := range checks {
		if c.Mend != "" {
			fmt.Fprintf(out, "%s  %s: %s\n", title, c.Name, c.Mend)
			title = ""
		}
	}
	return nil
}
