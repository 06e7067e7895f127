package main

// Where things stand in the guest's initramfs.
const (
	specPath    = "spec.json"
	modulesPath = "modules"
	carryPath   = "carry" // a tree laid over the guest's root
)

// A spec is what the host tells the guest, as JSON in the initramfs.
type spec struct {
	Base    []string // modules, as files of the initramfs in order, that give root and wire
	Modules []string // and the ones the test asked for
	Path    string   // the test binary
	Args    []string
	Env     []string
	Dir     string
	Results []string // files and directories for the host, if they exist in the end
}
