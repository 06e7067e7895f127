//go:build linux

package escape

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var textCases = []Case{
	textCase("proc-input", "the kernel's list of keyboards and mice has their names and nodes",
		"/proc/bus/input/devices", "/proc/bus/input/handlers"),
	textCase("proc-disks", "disks are listed with their numbers and use",
		"/proc/partitions", "/proc/diskstats", "/proc/scsi/scsi", "/proc/scsi/usb-storage/*", "/proc/scsi/sg/device_strs"),
	textCase("proc-drivers", "drivers list what they drive",
		"/proc/tty/driver/*", "/proc/asound/cards", "/proc/asound/card*/stream*", "/proc/asound/card*/usbid", "/proc/net/dev"),
	textCase("mount-table", "the sources of mounts name controllers, containers and devices",
		"/proc/self/mountinfo", "/proc/self/mounts", "/proc/self/mountstats", "/proc/[0-9]*/mountinfo"),
	textCase("socket-table", "the names of sockets tell who is there",
		"/proc/net/unix"),
	textCase("debugfs", "/sys/kernel/debug/usb/devices describes every device",
		"/sys/kernel/debug/usb/devices", "/sys/kernel/debug/usbip*", "/sys/kernel/debug/hid/*/rdesc"),
	textCase("udev-database", "udev keeps the properties of every device as files",
		"/run/udev/data/*"),
	textCase("attach-records", "the stock tools keep what is attached where as files",
		"/var/run/vhci_hcd/*", "/run/vhci_hcd/*"),
	{
		Name: "dev-tree", try: (*attempt).devTree,
		Why: "names and links below /dev tell serial numbers and lead to nodes",
	},
	{
		Name: "kernel-log", try: (*attempt).kernelLog,
		Why: "the kernel logs the product and serial number of what is attached",
	},
}

// textCase looks for the target in files.
func textCase(name, why string, patterns ...string) Case {
	return Case{Name: name, Why: why, try: func(a *attempt) (string, error) { return a.searchFiles(patterns) }}
}

func (a *attempt) searchFiles(patterns []string) (string, error) {
	var errs error
	read := 0
	for _, pattern := range patterns {
		files, err := filepath.Glob(a.path(pattern))
		if err != nil {
			return "", err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			read++
			if word := a.tells(file, string(text)); word != "" {
				return file + " tells " + word, nil
			}
		}
	}
	if read == 0 && errs != nil {
		return "", brief(errs)
	}
	return "", fmt.Errorf("%d files do not tell", read)
}

// tells looks for words of the target, and for names of its nodes in the lists
// that have no others.
func (a *attempt) tells(file, text string) string {
	if word := a.target().named(text); word != "" {
		return word
	}
	for _, n := range a.target().Nodes {
		switch {
		case filepath.Base(file) == n.number(): // in udev's database
			return n.number()
		case strings.HasPrefix(n.Name, "bus/usb/"): // their last parts are numbers
		case strings.HasPrefix(file, a.path("/proc/")) && containsField(text, filepath.Base(n.Name)):
			return n.Name
		}
	}
	return ""
}

// containsField tells whether one of the text's words is name, as in
// "H: Handlers=sysrq kbd event3".
func containsField(text, name string) bool {
	for field := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ' ' || r == '\n' || r == '\t' || r == '=' }) {
		if field == name {
			return true
		}
	}
	return false
}

func (a *attempt) devTree() (string, error) {
	found, seen := "", 0
	err := filepath.WalkDir(a.path("/dev"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went meanwhile, or is closed to us
		}
		seen++
		var st unix.Stat_t
		isNode := d.Type()&fs.ModeDevice != 0 && unix.Lstat(path, &st) == nil
		for _, n := range a.target().Nodes {
			if isNode && st.Rdev == n.dev() && st.Mode&unix.S_IFMT == n.mode()&unix.S_IFMT {
				found = path
			}
		}
		if a.target().named(d.Name()) != "" {
			found = path
		}
		if found != "" {
			return fs.SkipAll
		}
		return nil
	})
	if found == "" && err == nil {
		err = fmt.Errorf("not among %d files", seen)
	}
	return found, err
}

func (a *attempt) kernelLog() (string, error) {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		evidence, nodeErr := a.openOrMake(Node{Name: "kmsg", Major: 1, Minor: 11})
		return evidence, errors.Join(fmt.Errorf("syslog: %w", err), nodeErr)
	}
	if word := a.target().named(string(buf[:n])); word != "" {
		return "the kernel's log tells " + word, nil
	}
	return "", errors.New("the kernel's log does not tell")
}
