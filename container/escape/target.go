//go:build linux

package escape

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Target is a device attached to the kernel, and whose it is.
type Target struct {
	BusID  string // "1-2"
	Path   string // directory below /sys of the host
	Serial string // no other device has it
	Nodes  []Node

	Port int // in the status files that the host's administrator sees

	// Names are other words that give the device or its user away: the
	// exporter, the bus id there, the name of the controller or container.
	Names []string
	// Marks are words in the command lines of processes of its user, or of those
	// that serve it.
	Marks []string
	// Cgroup is its container's, as a path below the cgroup file system.
	Cgroup       string
	CgroupHandle Handle
	// Sockets are those that administer it.
	Sockets []string
}

// A Node is a file of a driver.
type Node struct {
	Name         string // below /dev
	Block        bool
	Major, Minor uint32
	Handle       Handle `json:",omitzero"`
}

// A Handle is what name_to_handle_at tells of a file, the zero value if the file
// has none.
type Handle struct {
	Type  int32
	Bytes []byte
}

// HandleOf asks for the handle of a file.
func HandleOf(path string) (Handle, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return Handle{}, fmt.Errorf("handle of %s: %w", path, err)
	}
	return Handle{h.Type(), h.Bytes()}, nil
}

func (n Node) String() string { return fmt.Sprintf("%s (%s)", n.Name, n.number()) }

// number is as udev writes it: c189:1.
func (n Node) number() string {
	kind := "c"
	if n.Block {
		kind = "b"
	}
	return fmt.Sprintf("%s%d:%d", kind, n.Major, n.Minor)
}

func (n Node) dev() uint64 { return unix.Mkdev(n.Major, n.Minor) }

func (n Node) mode() uint32 {
	if n.Block {
		return unix.S_IFBLK | 0o600
	}
	return unix.S_IFCHR | 0o600
}

// Describe reads the host's sysfs and devtmpfs: a device's directory, with all
// nodes below it.
func Describe(path string) (Target, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Target{}, err
	}
	t := Target{BusID: filepath.Base(real), Path: real}
	serial, err := os.ReadFile(filepath.Join(real, "serial"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	t.Serial = strings.TrimSpace(string(serial))
	err = filepath.WalkDir(real, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "dev" || !d.Type().IsRegular() {
			return err
		}
		n, err := describeNode(filepath.Dir(file))
		if err == nil {
			n.Handle, err = HandleOf("/dev/" + n.Name)
			t.Nodes = append(t.Nodes, n)
		}
		return err
	})
	return t, err
}

func describeNode(dir string) (n Node, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return n, err
	}
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), "=")
		number, _ := strconv.ParseUint(value, 10, 32) // of those that are numbers
		switch key {
		case "DEVNAME":
			n.Name = value
		case "MAJOR":
			n.Major = uint32(number)
		case "MINOR":
			n.Minor = uint32(number)
		}
	}
	subsystem, err := os.Readlink(filepath.Join(dir, "subsystem"))
	n.Block = filepath.Base(subsystem) == "block"
	return n, err
}

// named returns the word of the target that a text has, "" if it has none.
func (t *Target) named(text string) string {
	for _, word := range append([]string{t.Serial}, t.Names...) {
		if hasWord(text, word) {
			return word
		}
	}
	if dir := strings.TrimPrefix(t.Path, "/sys"); hasPath(text, dir) {
		return dir
	}
	return ""
}

// inPath tells whether a path leads to the target: a part of it is its bus id,
// an interface of it, or a node.
func (t *Target) inPath(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		part = strings.ReplaceAll(part, "!", "/") // how sysfs writes a slash
		device, _, _ := strings.Cut(part, ":")
		if device == t.BusID {
			return true
		}
		for _, n := range t.Nodes {
			if part == n.Name || part == filepath.Base(n.Name) && !strings.HasPrefix(n.Name, "bus/usb/") {
				return true
			}
		}
	}
	return false
}

// hasWord tells whether text has word, and not only as a piece of a longer one:
// the 0002 of a root hub's modalias, usb:v1D6Bp0002, is nobody's serial number.
func hasWord(text, word string) bool {
	if word == "" {
		return false
	}
	for at := 0; ; {
		i := strings.Index(text[at:], word)
		if i < 0 {
			return false
		}
		before, after := text[:at+i], text[at+i+len(word):]
		if !strings.ContainsFunc(before[max(0, len(before)-1):], isAlnum) && !strings.ContainsFunc(after[:min(1, len(after))], isAlnum) {
			return true
		}
		at += i + 1
	}
}

func isAlnum(r rune) bool {
	return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
}

// hasPath tells whether text has path, and not only a longer name that begins
// like it: 1-1 is not in 1-10, nor in 1-1.4.
func hasPath(text, path string) bool {
	for {
		_, after, ok := strings.Cut(text, path)
		if !ok || path == "" {
			return false
		}
		if after == "" || !strings.Contains("0123456789.", after[:1]) {
			return true
		}
		text = after
	}
}
