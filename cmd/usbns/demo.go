package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

func newDemo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show two private controllers with a bar-code scanner each",
		Long: "Export two emulated bar-code scanners on a free port of 127.0.0.1, give alice\n" +
			"and bob a controller each, attach a scanner to either, and scan a code on both. Needs no root and no\n" +
			"kernel module, and leaves nothing behind.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			d := demo{ctx: ctx, out: cmd.OutOrStdout()}
			if f, ok := d.out.(*os.File); ok {
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
}

func (d *demo) say(format string, args ...any) {
	before, after := "", ""
	if d.colour {
		before, after = "\x1b[1;36m", "\x1b[0m"
	}
	fmt.Fprintf(d.out, before+"# "+format+after+"\n", args...)
}

func (d *demo) run() error {
	s, err := openShelf([]string{"scanner", "scanner"})
	if err != nil {
		return err
	}
	defer s.close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	exporter := &usbip.Exporter{}
	for _, dev := range s {
		if err := exporter.Add(dev.busid, dev); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(d.ctx)
	served := make(chan error, 1)
	go func() { served <- exporter.Serve(ctx, listener) }()
	err = d.use(s, listener.Addr().String())
	stop()
	<-served
	return err
}

func (d *demo) use(s shelf, addr string) error {
	d.say("two scanners are exported on %s", addr)
	if err := d.list(addr); err != nil {
		return err
	}
	var table controller.Table
	defer table.Close()
	alice, err := d.attach(&table, "alice", addr, "1-1")
	if err != nil {
		return err
	}
	bob, err := d.attach(&table, "bob", addr, "1-2")
	if err != nil {
		return err
	}
	if err := d.trespass(bob, alice, addr); err != nil {
		return err
	}
	if err := d.scan(s[0], alice, "4006381333931"); err != nil {
		return err
	}
	if err := d.scan(s[1], bob, "9780201379624"); err != nil {
		return err
	}
	d.say("done: each scan reached its owner alone")
	return nil
}

func (d *demo) list(addr string) error {
	conn, err := usbip.Dial(d.ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	devices, err := usbip.List(d.ctx, conn)
	if err != nil {
		return err
	}
	return printList(d.out, addr, devices, readNames())
}

// attach gives somebody a controller and plugs a remote device into its port 0.
func (d *demo) attach(table *controller.Table, name, addr, busid string) (*controller.Controller, error) {
	made, err := table.Create(controller.Config{Name: name, HubPorts: 1, Driver: &controller.User{}, Policy: policy.Open()}, 1)
	if err != nil {
		return nil, err
	}
	c := made[0]
	conn, err := usbip.Dial(d.ctx, addr)
	if err != nil {
		return nil, err
	}
	info, err := usbip.RequestImport(d.ctx, conn, busid)
	if err == nil {
		_, err = c.Attach(d.ctx, 0, controller.Plug{Conn: conn, Speed: info.Speed, DevID: info.DevID()})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	d.say("%s has a controller of two ports and attached %s; its status:", name, busid)
	_, err = d.out.Write(c.AppendStatus(nil))
	return c, err
}

// trespass tries what must not work between neighbours.
func (d *demo) trespass(thief, owner *controller.Controller, addr string) error {
	d.say("%v tries to use the device of %v: to import it, and to find it on the next port", thief, owner)
	conn, err := usbip.Dial(d.ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err = usbip.RequestImport(d.ctx, conn, "1-1"); !errors.Is(err, usbip.OpBusy) {
		return fmt.Errorf("%v imported the device of %v: %v", thief, owner, err)
	}
	fmt.Fprintln(d.out, "refused:", err)
	if err = thief.Detach(1); !errors.Is(err, syscall.EINVAL) || owner.Device(0) == nil {
		return fmt.Errorf("%v detached the device of %v: %v", thief, owner, err)
	}
	fmt.Fprintln(d.out, "refused:", err)
	return nil
}

// scan holds a code before a scanner and reads what its owner gets.
func (d *demo) scan(scanner shelved, owner *controller.Controller, code string) error {
	d.say("the scanner of %v reads the bar code %s", owner, code)
	told := make(chan error, 1)
	go func() { told <- scanner.Device.(emulate.Teller).Tell(d.ctx, code) }()
	got, err := readLine(d.ctx, owner.Device(0))
	if err := errors.Join(err, <-told); err != nil {
		return fmt.Errorf("scan for %v: %w", owner, err)
	}
	fmt.Fprintf(d.out, "%v received %s\n", owner, got)
	if got != code {
		return fmt.Errorf("%v received %q, scanned was %q", owner, got, code)
	}
	return nil
}

// The key codes of a keyboard's digits and Enter (HID Usage Tables, section
// 10: Keyboard/Keypad Page).
const (
	key1     = 0x1e
	key0     = 0x27
	keyEnter = 0x28
)

// readLine reads the reports of a boot keyboard up to Enter and its release.
func readLine(ctx context.Context, dev usb.Device) (string, error) {
	var line strings.Builder
	for {
		key, err := readKey(ctx, dev)
		if err != nil {
			return "", err
		}
		switch {
		case key >= key1 && key < key0:
			line.WriteByte('1' + key - key1)
		case key == key0:
			line.WriteByte('0')
		case key == keyEnter:
			_, err := readKey(ctx, dev)
			return line.String(), err
		}
	}
}

// readKey returns the one key that is down in the next report, 0 for none: a
// scanner types keys one by one.
func readKey(ctx context.Context, dev usb.Device) (byte, error) {
	report := make([]byte, 8)
	u := usb.URB{Endpoint: 1 | usb.DirIn, Type: usb.Interrupt, Flags: usb.FlagDirIn, Buffer: report}
	if err := usb.Do(ctx, dev, &u); err != nil {
		return 0, fmt.Errorf("read a report: %w", err)
	}
	return report[2], nil
}
