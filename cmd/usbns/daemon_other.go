//go:build !linux

package main

import "github.com/spf13/cobra"

// addDaemon adds nothing: a controller is for Linux containers.
func addDaemon(*cobra.Command) {}
