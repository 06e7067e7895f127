package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/usbip"
	"github.com/usbns/usbns/vhci"
)

// A demoDaemon is a process of its own: a program must not use control files
// that it serves itself.
type demoDaemon struct {
	cmd   *exec.Cmd
	ended chan error
}

// startDemoDaemon returns when clients can connect.
func startDemoDaemon(dir string) (*demoDaemon, error) {
	d := &demoDaemon{ended: make(chan error, 1)}
	d.cmd = exec.Command("/proc/self/exe", "daemon", "--run", dir)
	d.cmd.Args[0] = "usbns"
	log, err := os.Create(filepath.Join(dir, "log")) // no pipe, which would end with the demo and then kill the daemon
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd.Stderr = log
	// The terminal's interrupt is for the demo, which then ends its daemon. So
	// does its death, if it cannot any more.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is about the thread that starts the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := d.cmd.Start()
		if err == nil {
			_, err = bufio.NewReader(stdout).ReadString('\n')
		}
		started <- err
		d.ended <- d.cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start a daemon: %w", err), d.end())
	}
	return d, nil
}

// end ends the daemon and returns when it has cleaned up.
func (d *demoDaemon) end() error {
	if d.cmd.Process != nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
	}
	if err := <-d.ended; err != nil {
		log, _ := os.ReadFile(d.cmd.Stderr.(*os.File).Name())
		return fmt.Errorf("the daemon ended with %w: %s", err, strings.TrimSpace(string(log)))
	}
	return nil
}

// attachForBob attaches the fingerprint reader, through the control files if
// there are any.
func (d *demo) attachForBob() error {
	c, err := d.daemon.Controller(d.ctx, "bob")
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, fmt.Sprintf("sys/devices/platform/vhci_hcd.%d", c.Index))
	files, err := vhci.OpenPath(path)
	if errors.Is(err, os.ErrNotExist) {
		return d.usbns("attach", "-r", d.exporter, "-b", "1-3", "-i", "bob")
	}
	if err != nil {
		return err
	}
	defer files.Close()
	conn, err := usbip.Dial(d.ctx, d.exporter)
	if err != nil {
		return err
	}
	defer conn.Close()
	info, err := usbip.RequestImport(d.ctx, conn, "1-3")
	if err != nil {
		return err
	}
	socket, err := conn.(*net.TCPConn).File()
	if err != nil {
		return err
	}
	defer socket.Close()
	request := vhci.AttachRequest{SockFD: int(socket.Fd()), DevID: info.DevID(), Speed: info.Speed}
	d.say("bob's controller is a directory as the kernel's vhci_hcd.0 is, and takes what the stock tool writes")
	d.print("1", "$ echo %s > %s/attach", vhci.AppendAttach(nil, request), path)
	if err := files.Attach(request); err != nil {
		d.print("31", "refused: %v (usbns doctor may tell why); bob asks the daemon", err)
		_, err := d.daemon.Attach(d.ctx, conn.(*net.TCPConn), control.Attach{
			Controller: "bob", Port: control.AnyPort, DevID: info.DevID(), Speed: int(info.Speed),
		})
		return err
	}
	status, err := os.ReadFile(filepath.Join(path, "status"))
	if err != nil {
		return err
	}
	d.print("1", "$ cat %s/status", path)
	_, err = d.out.Write(status)
	return err
}
