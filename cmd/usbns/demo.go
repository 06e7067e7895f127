package main

import (
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

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

func newDemo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show two users with a bar-code scanner each",
		Long: "Export two emulated bar-code scanners on a free port of 127.0.0.1, import one\n" +
			"for alice and one for bob, and scan a code on each. Needs no root and no\n" +
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
	alice, err := d.importDevice(addr, "1-1")
	if err != nil {
		return err
	}
	defer alice.Close()
	bob, err := d.importDevice(addr, "1-2")
	if err != nil {
		return err
	}
	defer bob.Close()
	d.say("alice has imported 1-1, bob 1-2; bob tries to get 1-1 as well")
	if _, err := d.importDevice(addr, "1-1"); !errors.Is(err, usbip.OpBusy) {
		return fmt.Errorf("bob's import of alice's scanner was not refused as busy: %v", err)
	} else {
		fmt.Fprintln(d.out, "refused:", err)
	}
	if err := d.scan(s[0], alice, "alice", "4006381333931"); err != nil {
		return err
	}
	if err := d.scan(s[1], bob, "bob", "9780201379624"); err != nil {
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

// importDevice imports a device and configures it, so that it works.
func (d *demo) importDevice(addr, busid string) (*usbip.Importer, error) {
	conn, err := usbip.Dial(d.ctx, addr)
	if err != nil {
		return nil, err
	}
	dev, err := usbip.Import(d.ctx, conn, busid, nil)
	if err != nil {
		return nil, err
	}
	value := dev.Descriptors().Configurations()[0].Value
	if _, err := usb.ControlTransfer(d.ctx, dev, usb.SetConfiguration(value), nil); err != nil {
		dev.Close()
		return nil, fmt.Errorf("configure %s: %w", busid, err)
	}
	return dev, nil
}

// scan holds a code before a scanner and reads what its owner gets.
func (d *demo) scan(scanner, owner usb.Device, name, code string) error {
	d.say("%s's scanner reads the bar code %s", name, code)
	told := make(chan error, 1)
	go func() { told <- scanner.(shelved).Device.(emulate.Teller).Tell(d.ctx, code) }()
	got, err := readLine(d.ctx, owner)
	if err := errors.Join(err, <-told); err != nil {
		return fmt.Errorf("scan for %s: %w", name, err)
	}
	fmt.Fprintf(d.out, "%s received %s\n", name, got)
	if got != code {
		return fmt.Errorf("%s received %q, scanned was %q", name, got, code)
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
