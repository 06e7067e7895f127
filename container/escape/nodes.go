//go:build linux

package escape

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var nodeCases = []Case{
	{
		Name: "node-open", Own: true, try: (*attempt).nodeOpen,
		Why: "whoever opens a node uses the device",
	},
	{
		Name: "node-mknod", try: (*attempt).nodeMknod,
		Why: "a node of the right number is as good as the one in /dev",
	},
	{
		Name: "node-range", try: (*attempt).nodeRange,
		Why: "numbers can be guessed: there are 8192 of USB devices and few of others",
	},
	{
		Name: "node-usbmon", try: (*attempt).nodeUsbmon,
		Why: "usbmon shows all that runs over a bus, or over all of them",
	},
	{
		Name: "node-inject", try: (*attempt).nodeInject,
		Why: "uinput and uhid make devices that type into the machine of all",
	},
}

// openNode opens a file and makes sure that it is the node.
func openNode(path string, n Node) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Rdev != n.dev() || st.Mode&unix.S_IFMT != n.mode()&unix.S_IFMT {
		return "", fmt.Errorf("%s is another node", path)
	}
	return "opened " + path, nil
}

func (a *attempt) nodeOpen() (string, error) { return a.nodesIn(a.path("/dev")) }

// nodesIn opens the first of the target's nodes below a directory.
func (a *attempt) nodesIn(dir string) (string, error) {
	var errs error
	for _, n := range a.target().Nodes {
		evidence, err := openNode(filepath.Join(dir, n.Name), n)
		if err == nil {
			return evidence, nil
		}
		errs = errors.Join(errs, err)
	}
	return "", brief(errs)
}

// makeAndOpen makes a node wherever it can be made, and opens it. Some file
// systems let nodes be made and not opened.
func (a *attempt) makeAndOpen(n Node) (string, error) {
	return makeAndOpenIn(n, a.dir, "/dev", "/dev/shm", "/run", "/")
}

var errNoNode = errors.New("mknod")

func makeAndOpenIn(n Node, dirs ...string) (string, error) {
	var errs error
	for _, dir := range dirs {
		path := filepath.Join(dir, "escape-node")
		if err := unix.Mknod(path, n.mode(), int(n.dev())); err != nil {
			errs = errors.Join(errs, fmt.Errorf("%w in %s: %v", errNoNode, dir, err))
			continue
		}
		evidence, err := openNode(path, n)
		os.Remove(path)
		if err == nil {
			return evidence, nil
		}
		errs = errors.Join(errs, err)
	}
	return "", brief(errs)
}

func (a *attempt) nodeMknod() (string, error) {
	var errs error
	for _, n := range a.target().Nodes {
		if evidence, err := a.makeAndOpen(n); err == nil {
			return evidence + " as " + n.String(), nil
		} else {
			errs = errors.Join(errs, err)
		}
	}
	return "", brief(errs)
}

// openOrMake opens a node in /dev or one of the same number.
func (a *attempt) openOrMake(n Node) (string, error) {
	evidence, err := openNode(a.path("/dev/"+n.Name), n)
	if err != nil {
		evidence, err = a.makeAndOpen(n)
	}
	return evidence, err
}

// Majors of Documentation/admin-guide/devices.txt, and how many minors to try.
var ranges = []struct {
	name  string
	block bool
	major uint32
	n     uint32
}{
	{"usb", false, 189, 8192},
	{"input", false, 13, 256},
	{"serial", false, 166, 64},
	{"serial", false, 188, 64},
	{"sound", false, 116, 64},
	{"scsi", false, 21, 32},
	{"disk", true, 8, 64},
}

// nodeRange takes every node that is not the own one for the neighbour's.
func (a *attempt) nodeRange() (string, error) {
	// In a user namespace no node can be made, whatever its number.
	if _, err := makeAndOpenIn(Node{Name: "null", Major: 1, Minor: 3}, a.dir, "/dev"); errors.Is(err, errNoNode) {
		return "", err
	}
	own := map[string]bool{}
	for _, n := range a.Own.Nodes {
		own[n.number()] = true
	}
	var last error
	tried := 0
	for _, r := range ranges {
		for minor := range r.n {
			n := Node{Block: r.block, Major: r.major, Minor: minor}
			if own[n.number()] != a.own {
				continue
			}
			tried++
			evidence, err := makeAndOpenIn(n, a.dir, "/dev")
			if err == nil {
				return fmt.Sprintf("%s as %s %s", evidence, r.name, n.number()), nil
			}
			last = err
		}
	}
	if last == nil {
		return "", errors.New("no number is in a range")
	}
	return "", fmt.Errorf("none of %d numbers: %w", tried, last)
}

// dynamicMajor looks up a driver's number.
func dynamicMajor(name string) (uint32, error) {
	text, err := os.ReadFile("/proc/devices")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var major uint32
		var driver string
		if n, _ := fmt.Sscan(line, &major, &driver); n == 2 && driver == name {
			return major, nil
		}
	}
	return 0, fmt.Errorf("no driver %s in /proc/devices", name)
}

func (a *attempt) nodeUsbmon() (string, error) {
	major, err := dynamicMajor("usbmon")
	if err != nil {
		return "", err
	}
	var errs error
	for minor := range uint32(64) { // 0 is all buses
		n := Node{Name: fmt.Sprintf("usbmon%d", minor), Major: major, Minor: minor}
		evidence, err := a.openOrMake(n)
		if err == nil {
			return evidence, nil
		}
		errs = errors.Join(errs, err)
	}
	return "", brief(errs)
}

func (a *attempt) nodeInject() (string, error) {
	var errs error
	for _, n := range []Node{
		{Name: "uinput", Major: 10, Minor: 223},
		{Name: "uhid", Major: 10, Minor: 239},
		{Name: "vhci", Major: 10, Minor: 137}, // Bluetooth's
	} {
		evidence, err := a.openOrMake(n)
		if err == nil {
			return evidence, nil
		}
		errs = errors.Join(errs, err)
	}
	return "", brief(errs)
}
