package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/container/guard"
)

// runtimes are the kinds of container runtimes that usbns hook serves, and how
// each is told to call it.
var runtimes = map[string]func(io.Writer, hookCall) error{
	"lxc": lxcConfig,
	"oci": ociConfig,
	"cdi": cdiConfig,
}

// A hookCall is a call of usbns hook for one controller.
type hookCall struct {
	program    string // its absolute path
	args       []string
	controller string
}

// oneOfValidArgs wants one argument, and says which there are.
func oneOfValidArgs(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || !slices.Contains(cmd.ValidArgs, args[0]) {
		return fmt.Errorf("%s takes one of %s", cmd.CommandPath(), strings.Join(cmd.ValidArgs, ", "))
	}
	return nil
}

func newConfig(dir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config lxc|oci|cdi",
		Short: "Print what makes a container runtime give a container its controller",
		Long: "Prints configuration that makes a container runtime give a container a controller:\n" +
			"lines for LXC's configuration file, members for an OCI runtime's config.json, or a\n" +
			"file for /etc/cdi, from which Docker and Podman take --device usbns.dev/controller=NAME.",
		Example:   "  usbns config lxc -i alice >>/var/lib/lxc/alice/config\n  usbns config cdi -i alice >/etc/cdi/usbns-alice.json",
		Args:      oneOfValidArgs,
		ValidArgs: slices.Sorted(maps.Keys(runtimes)),
	}
	ref := controllerFlag(cmd)
	events := cmd.Flags().Bool("allow-events", false, "take a container that hears the kernel's events of all devices")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		program, err := os.Executable()
		if err != nil {
			return err
		}
		run, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		dialect := args[0]
		if dialect == "cdi" {
			dialect = "oci"
		}
		call := hookCall{program: program, controller: *ref, args: []string{"hook", dialect, "--run", run, "-i", *ref}}
		if *events {
			call.args = append(call.args, "--allow-events")
		}
		for _, word := range append(call.args, program) {
			if strings.ContainsAny(word, " \t\n\"'\\") {
				return usageError{fmt.Errorf("%q has characters that cannot stand in a configuration file", word)}
			}
		}
		return runtimes[args[0]](cmd.OutOrStdout(), call)
	}
	return cmd
}

// lxcConfig takes from the container what it could undo by what hides the
// devices of others, and what would show them all the same.
func lxcConfig(w io.Writer, c hookCall) error {
	_, err := fmt.Fprintf(w, "lxc.hook.start-host = %s %s\nlxc.cap.drop = sys_admin bpf perfmon syslog dac_read_search\n", c.program, strings.Join(c.args, " "))
	return err
}

// An ociHook is as in the OCI runtime specification.
type ociHook struct {
	HookName string   `json:"hookName,omitempty"` // for CDI
	Path     string   `json:"path"`
	Args     []string `json:"args"`
}

func (c hookCall) oci() ociHook {
	return ociHook{Path: c.program, Args: append([]string{"usbns"}, c.args...)}
}

// ociConfig allows all devices of the classes that the guard rules over, which
// has the last word.
func ociConfig(w io.Writer, c hookCall) error {
	classes, err := guard.Classes()
	if err != nil {
		return err
	}
	type rule struct {
		Allow  bool   `json:"allow"`
		Type   string `json:"type"`
		Major  uint32 `json:"major"`
		Access string `json:"access"`
	}
	rules := make([]rule, len(classes))
	for i, class := range classes {
		rules[i] = rule{true, class.Kind(), class.Major, "rwm"}
	}
	return writeJSON(w, map[string]any{
		"hooks": map[string]any{"createRuntime": []ociHook{c.oci()}},
		"linux": map[string]any{"resources": map[string]any{"devices": rules}},
	})
}

// cdiConfig is as in the Container Device Interface 0.6.
func cdiConfig(w io.Writer, c hookCall) error {
	h := c.oci()
	h.HookName = "createRuntime"
	return writeJSON(w, struct {
		Version string `json:"cdiVersion"`
		Kind    string `json:"kind"`
		Devices []any  `json:"devices"`
	}{"0.6.0", "usbns.dev/controller", []any{map[string]any{
		"name":           c.controller,
		"containerEdits": map[string]any{"hooks": []ociHook{h}},
	}}})
}
