package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/usbip"
)

// demoTime is some twenty times what a demo takes.
const demoTime = time.Minute

func newDemo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show two private controllers at work",
		Long: "Export an emulated scanner, signature pad and fingerprint reader on a free port\n" +
			"of 127.0.0.1, run a daemon in a directory of its own, give alice the first two\n" +
			"and bob the third, and use them. Needs no root and no kernel module, and leaves\n" +
			"nothing behind. As root it attaches through control files as well.",
		Example: "  usbns demo\n  NO_COLOR=1 usbns demo",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoTime)
			defer cancel()
			d := demo{ctx: ctx, out: cmd.OutOrStdout()}
			if f, ok := d.out.(interface{ Fd() uintptr }); ok && os.Getenv("NO_COLOR") == "" {
				d.colour = term.IsTerminal(int(f.Fd()))
			}
			return d.run()
		},
	}
}

// A demo tells what it does while it does it.
type demo struct {
	ctx    context.Context
	out    io.Writer
	colour bool

	shelf    shelf // a scanner, a signpad and a fingerprint reader
	exporter string
	dir      string // of the daemon
	daemon   *control.Client
	heard    chan heard // gets one
}

func (d *demo) say(format string, args ...any) { d.print("1;36", "# "+format, args...) }

func (d *demo) print(colour, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if d.colour {
		text = "\x1b[" + colour + "m" + text + "\x1b[0m"
	}
	fmt.Fprintln(d.out, text)
}

// run starts the exporter and the daemon, and ends both.
func (d *demo) run() (err error) {
	if d.shelf, err = openShelf([]string{"scanner", "signpad", "fingerprint"}); err != nil {
		return err
	}
	defer d.shelf.close()
	exporter := &usbip.Exporter{}
	for _, dev := range d.shelf {
		if err := exporter.Add(dev.busid, dev); err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.exporter = listener.Addr().String()
	ctx, stop := context.WithCancel(d.ctx)
	served := make(chan error, 1)
	go func() { served <- exporter.Serve(ctx, listener) }()
	defer func() { <-served }()
	defer stop()

	if d.dir, err = os.MkdirTemp("", "usbns-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	child, err := startDemoDaemon(d.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, child.end()) }()
	d.daemon = control.NewClient(d.dir)
	return d.tell()
}

func (d *demo) tell() error {
	for _, part := range []func() error{d.build, d.trespass, d.scan, d.draw, d.touch, d.takeDown} {
		if err := part(); err != nil {
			return err
		}
	}
	d.say("done: whatever a device said reached its owner alone")
	return nil
}

// build gives alice the scanner and the pad, and bob the fingerprint reader.
func (d *demo) build() error {
	d.say("three devices are exported on %s", d.exporter)
	if err := d.usbns("list", "-r", d.exporter); err != nil {
		return err
	}
	d.say("a daemon makes two controllers; alice attaches two devices to hers, bob one to his")
	for _, name := range []string{"alice", "bob"} {
		if err := d.usbns("controller", "create", "--ports", "2", name); err != nil {
			return err
		}
	}
	for _, busid := range []string{"1-1", "1-2"} {
		if err := d.usbns("attach", "-r", d.exporter, "-b", busid, "-i", "alice"); err != nil {
			return err
		}
	}
	if err := d.attachForBob(); err != nil {
		return err
	}
	d.say("each sees what is on ports of their own, numbered from 0")
	if err := d.usbns("port", "-i", "alice"); err != nil {
		return err
	}
	return d.usbns("port", "-i", "bob")
}

// trespass tries what must not work between neighbours.
func (d *demo) trespass() error {
	d.say("bob tries to import the scanner of alice, and to find it on a port")
	for _, attempt := range [][]string{
		{"attach", "-r", d.exporter, "-b", "1-1", "-i", "bob"},
		{"detach", "-p", "1", "-i", "bob"},
		{"transfer", "-p", "1", "-i", "bob", "--endpoint", "0x81"},
	} {
		err := d.usbns(attempt...)
		if err == nil {
			return fmt.Errorf("bob may %s a device of alice", attempt[0])
		}
		if d.ctx.Err() != nil {
			return err
		}
		d.print("31", "refused: %v", err)
	}
	ports, err := d.daemon.Ports(d.ctx, "alice")
	if err != nil {
		return err
	}
	if ports[0].Product == 0 || ports[1].Product == 0 {
		return fmt.Errorf("alice lost a device: %+v", ports)
	}
	return nil
}

func (d *demo) takeDown() error {
	d.say("alice detaches her scanner; the other devices go with their controllers")
	if err := d.usbns("detach", "-p", "0", "-i", "alice"); err != nil {
		return err
	}
	return d.usbns("controller", "delete", "alice", "bob")
}

// usbns shows a command and runs it in this process.
func (d *demo) usbns(args ...string) error {
	d.print("1", "$ usbns %s", strings.Join(args, " "))
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetArgs(append(args, "--run", d.dir))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(d.ctx)
	if _, err := d.out.Write(out.Bytes()); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return err
}
