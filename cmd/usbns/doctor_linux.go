package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/doctor"
)

func newDoctor(dir *string) *cobra.Command {
	var asJSON, prove bool
	cmd := &cobra.Command{
		Use:   "doctor [CONTAINER]",
		Short: "Tell what works on this host, or what a container is kept from, and how to mend the rest",
		Long: "Try what usbns needs of this host and tell what works, what needs it, and how to\n" +
			"mend what does not. Of a container, which is named by its controller, tell what is\n" +
			"private to it, what is not, and why. Nothing is changed. The exit status is 1 if\n" +
			"something does not work, or is not private, at all; what is so partly is told only.\n\n" +
			"With --prove a process joins the container and tries all known ways to another\n" +
			"controller's device, and some of them on its own, to show that they have eyes. Each\n" +
			"is told with its evidence. The exit status is 1 if one gets through. Where nothing\n" +
			"protects the neighbour, the attempt may detach its device. The process has no filter\n" +
			"of system calls, and whoever is root in the container can have it say anything.",
		Example: "  sudo usbns doctor\n  sudo usbns doctor alice\n  sudo usbns doctor --prove alice\n" +
			"  usbns doctor --json | jq -r '.[] | select(.state == \"no\") | .mend'",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if prove {
				if len(args) == 0 {
					return usageError{errors.New("--prove needs a container")}
				}
				return proveContainer(cmd.Context(), cmd.OutOrStdout(), *dir, args[0], asJSON)
			}
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
	cmd.Flags().BoolVar(&prove, "prove", false, "try in the container to reach another's device, and print the evidence")
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

func proveContainer(ctx context.Context, out io.Writer, dir, ref string, asJSON bool) error {
	c, err := findContainer(ctx, dir, ref)
	if err != nil {
		return err
	}
	neighbours, err := findNeighbours(ctx, dir, c.Controller.Index)
	if err != nil {
		return err
	}
	proof, err := c.Prove(ctx, neighbours)
	if err != nil {
		return fmt.Errorf("prove that %s is kept from its neighbours: %w", ref, err)
	}
	if asJSON {
		err = writeJSON(out, proof)
	} else {
		err = printProof(out, proof)
	}
	if err == nil && !proof.Holds() {
		err = exitStatus(exitFailed)
	}
	return err
}

// findNeighbours asks the daemon for all other controllers.
func findNeighbours(ctx context.Context, dir string, index int) (all []doctor.Neighbour, err error) {
	client := control.NewClient(dir)
	list, err := client.Controllers(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if c.Index == index {
			continue
		}
		var n doctor.Neighbour
		n.Container, err = client.Container(ctx, strconv.Itoa(c.Index))
		if err == nil || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESRCH) {
			n.Ports, err = client.Ports(ctx, strconv.Itoa(c.Index))
		}
		if err != nil && !errors.Is(err, syscall.ENOENT) { // it has been deleted meanwhile
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

func printProof(out io.Writer, p *doctor.Proof) error {
	fmt.Fprintf(out, "The container has %s, its neighbour %s.\n\n", p.Own, p.Neighbour)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CASE\tDEVICE\tVERDICT\tEVIDENCE")
	n := make(map[doctor.Verdict]int)
	for _, a := range p.Attempts {
		device := "neighbour's"
		if a.Own {
			device = "own"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", a.Case, device, a.Verdict, a.Text)
		n[a.Verdict]++
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the proof: %w", err)
	}
	title := "\nNot private:\n"
	for _, a := range p.Attempts {
		if a.Verdict == doctor.Escaped {
			fmt.Fprintf(out, "%s  %s: %s\n", title, a.Case, a.Why)
			title = ""
		}
	}
	_, err := fmt.Fprintf(out, "\nOf %d attempts on the neighbour's device %d got through; of %d on the own one %d did not.\n",
		n[doctor.KeptOut]+n[doctor.Escaped], n[doctor.Escaped], n[doctor.Reached]+n[doctor.Blind], n[doctor.Blind])
	return err
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
