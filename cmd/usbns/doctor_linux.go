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
		Use:   "doctor",
		Short: "Tell what works on this host, and how to mend the rest",
		Long: "Try what usbns needs of this host and tell what works, what needs it, and how to\n" +
			"mend what does not. Nothing is changed. The exit status is 1 if something does\n" +
			"not work at all; what works partly is told only.",
		Example: "  sudo usbns doctor\n  usbns doctor --json | jq -r '.[] | select(.state == \"no\") | .mend'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			host := doctor.Host{RunDir: *dir, Answers: func(ctx context.Context) error {
				_, err := control.NewClient(*dir).Controllers(ctx)
				return err
			}}
			checks := host.Examine(cmd.Context())
			print := printChecks
			if asJSON {
				print = func(out io.Writer, checks []doctor.Check) error { return writeJSON(out, checks) }
			}
			if err := print(cmd.OutOrStdout(), checks); err != nil {
				return err
			}
			if slices.ContainsFunc(checks, func(c doctor.Check) bool { return c.State == doctor.No }) {
				return exitStatus(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
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
