package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

// completionTime bounds how long a Tab takes: an exporter may not answer.
const completionTime = 2 * time.Second

// addCompletion completes controllers, ports and busids by asking the daemon and
// the exporter.
func addCompletion(cmd *cobra.Command, dir *string) {
	for _, c := range cmd.Commands() {
		addCompletion(c, dir)
	}
	byFlag := map[string]cobra.CompletionFunc{
		"controller": completeControllers(dir),
		"port":       completePorts(dir),
		"busid":      completeBusIDs,
		"driver":     fixed("user", "kernel"),
		"allow":      fixed(classWords()...),
		"deny":       fixed(classWords()...),
		"max-speed":  fixed("low", "full", "high", "super", "super-plus"),
	}
	for name, complete := range byFlag {
		if cmd.Flags().Lookup(name) != nil {
			cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, complete))
		}
	}
	if cmd.Name() == "delete" || cmd.Name() == "doctor" {
		cmd.ValidArgsFunction = completeControllers(dir)
	} else if cmd.RunE != nil && cmd.ValidArgsFunction == nil && cmd.Name() != "man" && cmd.Name() != "run" {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}

func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// classWords are those of a policy.
func classWords() (words []string) {
	for _, c := range policy.All.List() {
		words = append(words, c.String())
	}
	return append(words, policy.All.String())
}

func completeControllers(dir *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		list, err := control.NewClient(*dir).Controllers(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var refs []string
		for _, c := range list {
			refs = append(refs, or(c.Name, strconv.Itoa(c.Index))+"\t"+c.Driver)
		}
		return refs, cobra.ShellCompDirectiveNoFileComp
	}
}

// completePorts offers the ports that are in use of the controller that is
// chosen.
func completePorts(dir *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		ref, _ := cmd.Flags().GetString("controller")
		ports, err := control.NewClient(*dir).Ports(ctx, ref)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var numbers []string
		for _, p := range ports {
			if p.Status != int(vhci.StatusNull) {
				numbers = append(numbers, fmt.Sprintf("%d\t%q", p.Number, p.ProductName))
			}
		}
		return numbers, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeBusIDs offers what the exporter that is named has.
func completeBusIDs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	remote, _ := cmd.Flags().GetString("remote")
	if remote == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	conn, err := usbip.Dial(ctx, remote)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer conn.Close()
	devices, err := usbip.List(ctx, conn)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := readNames()
	var busids []string
	for _, d := range devices {
		busids = append(busids, d.BusID+"\t"+productName(names, d.Vendor, d.Product))
	}
	return busids, cobra.ShellCompDirectiveNoFileComp
}
