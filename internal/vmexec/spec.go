package main

import "fmt"

// Where things stand in the guest's initramfs.
const (
	specPath    = "spec.json"
	modulesPath = "modules"
	carryPath   = "carry" // a tree laid over the guest's root
)

// rootTag is the 9p tag of a tree of the guest's root.
func rootTag(i int) string { return fmt.Sprintf("root%d", i) }

// A spec is what the host tells the guest, as JSON in the initramfs.
type spec struct {
	Base    []string // modules, as files of the initramfs in order, that give root and wire
	Modules []string // and the ones the test asked for
	Path    string   // the test binary
	Args    []string
	Env     []string
	Dir     string
	Roots   int      // trees of the guest's root, upper ones first
	Results []string // files and directories for the host, if they exist in the end
}
