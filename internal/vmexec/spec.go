package main

// Where things stand in the guest's initramfs.
const (
	specPath    = "spec.json"
	modulesPath = "modules"
	carryPath   = "carry" // a tree laid over the guest's root
)

// A spec is what the host tells the guest, as JSON in the initramfs.
type spec struct {
	Base    []string // modules, as files of the initramfs in order, that give root and wires
	Modules []string // and the ones the test asked for
	Path    string   // the test binary
	Args    []string
	Env     []string
	Dir     string
	Results []string // files and directories for the host, if they exist in the end
}

// Names of the virtio-serial ports, one a direction of data.
const (
	outPort     = "out"     // what the test prints
	resultsPort = "results" // tar of spec.Results
)

// The guest leaves by writing exitBase + its exit status to the port of QEMU's
// isa-debug-exit, which makes QEMU's own exit status 2*that + 1. The base keeps
// it apart from the 0 and 1 of a QEMU that ends by itself.
const (
	exitIOPort = 0xf4
	exitBase   = 0x40
	exitSetup  = 0x3f // the guest failed, not the test; the greatest that fits
)
