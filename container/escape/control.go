//go:build linux

package escape

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var controlCases = []Case{
	{
		Name: "status-guess", Own: true, try: (*attempt).statusGuess,
		Why: "the status of a controller tells what is attached there",
	},
	{
		Name: "attach-foreign", try: (*attempt).attachForeign,
		Why: "a number that is not an open socket of the writer may be one of the daemon's or of another container's",
	},
	{
		Name: "attach-passed", try: (*attempt).attachPassed,
		Why: "who writes to an attach file that another opened may not know what he writes to",
	},
	{
		Name: "detach-port", Own: true, Harms: true, try: (*attempt).detachPort,
		Why: "the administrator's number of a port, or a guessed one, detaches another's device",
	},
	{
		Name: "detach-tool", Harms: true, try: (*attempt).detachTool,
		Why: "so might the stock tool",
	},
}

// controllerDir has the container's own controller and nothing else.
const controllerDir = "/sys/devices/platform/vhci_hcd.0"

// portLine is a line of a status file.
type portLine struct {
	number int
	status string
	busid  string
}

func (a *attempt) ports(file string) ([]portLine, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var ports []portLine
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 7 {
			continue
		}
		if number, err := strconv.Atoi(f[1]); err == nil { // the first line has words
			ports = append(ports, portLine{number, f[2], f[6]})
		}
	}
	return ports, nil
}

// statusGuess tries the directories of other controllers as well.
func (a *attempt) statusGuess() (string, error) {
	dirs, err := filepath.Glob(a.path("/sys/devices/platform/vhci_hcd.*"))
	if err != nil {
		return "", err
	}
	for n := range 64 {
		dirs = append(dirs,
			a.path(fmt.Sprintf("/sys/devices/platform/vhci_hcd.%d", n)),
			a.path(fmt.Sprintf("%s/../vhci_hcd.%d", controllerDir, n)))
	}
	var last error
	for _, dir := range dirs {
		files, err := filepath.Glob(dir + "/status*")
		if err != nil {
			return "", err
		}
		for _, file := range files {
			ports, err := a.ports(file)
			if err != nil {
				last = err
			}
			for _, p := range ports {
				if p.busid == a.target().BusID {
					return fmt.Sprintf("%s shows it on port %d", file, p.number), nil
				}
			}
		}
	}
	return "", last
}

// freePort is one of the container's own.
func (a *attempt) freePort() (int, error) {
	ports, err := a.ports(a.path(controllerDir + "/status"))
	if err != nil {
		return 0, err
	}
	for _, p := range ports {
		if p.status == "004" {
			return p.number, nil
		}
	}
	return 0, errors.New("no port is free")
}

// writeControl writes as a shell does, with one system call.
func (a *attempt) writeControl(name, text string) error {
	fd, err := unix.Open(a.path(controllerDir+"/"+name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return fmt.Errorf("write %q to %s: %w", text, name, err)
	}
	return nil
}

// attachForeign names descriptors that this process does not have.
func (a *attempt) attachForeign() (string, error) {
	port, err := a.freePort()
	if err != nil {
		return "", err
	}
	var last error
	for fd := range 64 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			continue // this one is open
		}
		err := a.writeControl("attach", fmt.Sprintf("%d %d 65538 3", port, fd))
		if err == nil {
			return fmt.Sprintf("descriptor %d of somebody was attached", fd), nil
		}
		last = err
	}
	return "", last
}

// attachPassed lets a shell write to a file that this process has opened, with
// the number of a socket that both have.
func (a *attempt) attachPassed() (string, error) {
	port, err := a.freePort()
	if err != nil {
		return "", err
	}
	attach, err := os.OpenFile(a.path(controllerDir+"/attach"), os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	defer attach.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	defer ours.Close() // which ends what was attached
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience/2)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", fmt.Sprintf("echo %d 3 65538 3", port))
	cmd.Stdout = attach
	cmd.ExtraFiles = []*os.File{theirs}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return "the writer's socket was attached to a file that another had opened", nil
}

// detachPort leaves out the numbers of own devices, unless they are meant.
func (a *attempt) detachPort() (string, error) {
	var try []int
	own, err := a.ownPorts()
	if err != nil {
		return "", err
	}
	if a.own {
		try = own
	} else {
		// The number itself, and those that become it in fewer bits.
		port := a.target().Port
		try = append(without(own, port), port+1<<8, port+1<<16, port+1<<32)
	}
	var last error
	for _, port := range try {
		if err := a.writeControl("detach", strconv.Itoa(port)); err != nil {
			last = err
			continue
		}
		if a.gone() {
			return fmt.Sprintf("detach took port %d, and the device is gone", port), nil
		}
		return fmt.Sprintf("detach took port %d", port), nil
	}
	return "", last
}

// ownPorts are those on which the container's own status shows the own device.
func (a *attempt) ownPorts() (own []int, err error) {
	ports, err := a.ports(a.path(controllerDir + "/status"))
	if err != nil {
		return nil, err
	}
	for _, p := range ports {
		if p.busid == a.Own.BusID {
			own = append(own, p.number)
		}
	}
	return own, nil
}

// without gives the port unless it is one of own.
func without(own []int, port int) []int {
	for _, p := range own {
		if p == port {
			return nil
		}
	}
	return []int{port}
}

// gone waits a moment for the target's directory to go.
func (a *attempt) gone() bool {
	for start := time.Now(); time.Since(start) < attention; time.Sleep(10 * time.Millisecond) {
		if _, err := a.sysfsPath(); err != nil {
			return true
		}
	}
	return false
}

func (a *attempt) detachTool() (string, error) {
	own, err := a.ownPorts()
	if err != nil {
		return "", err
	}
	if !a.own {
		own = without(own, a.target().Port)
	}
	var last error
	for _, port := range own {
		ctx, cancel := context.WithTimeout(context.Background(), patience/2)
		out, err := exec.CommandContext(ctx, "usbip", "detach", "-p", strconv.Itoa(port)).CombinedOutput()
		cancel()
		said := strings.TrimSpace(string(out))
		if err == nil && strings.Contains(said, "is now detached") {
			return said, nil
		}
		last = fmt.Errorf("usbip detach -p %d: %s (%v)", port, said, err)
	}
	return "", last
}
