package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

func newExport() *cobra.Command {
	var listen string
	var devices []string
	cmd := &cobra.Command{
		Use:   "export --device KIND[:BUSID]...",
		Short: "Export emulated devices over USB/IP",
		Long: "Export emulated devices until interrupted. Devices without a BUSID are\n" +
			"1-1, 1-2 and so on, in order.\n\n" +
			"A line \"BUSID TEXT\" on standard input tells a device something: a scanner\n" +
			"what to scan, a serial port what to send.\n\nKinds:\n" + kinds(),
		Example: "  usbns export --device scanner --device disk\n" +
			"  echo '1-1 4006381333931' | usbns export --device scanner\n" +
			"  usbns export --listen 192.0.2.1:3240 --device signpad:3-1",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return export(cmd, listen, devices)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", net.JoinHostPort("127.0.0.1", usbip.DefaultPort), "address to listen on; port 0 takes a free one")
	cmd.Flags().StringArrayVar(&devices, "device", nil, "device to export, as KIND or KIND:BUSID")
	cobra.CheckErr(cmd.MarkFlagRequired("device"))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("device", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, k := range emulate.Kinds() {
			names = append(names, k.Name+"\t"+k.Summary)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}))
	return cmd
}

func kinds() string {
	var b strings.Builder
	for _, k := range emulate.Kinds() {
		fmt.Fprintf(&b, "  %-12s %s\n", k.Name, k.Summary)
	}
	return b.String()
}

func export(cmd *cobra.Command, listen string, specs []string) error {
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	shelf, err := openShelf(specs)
	if err != nil {
		return usageError{err}
	}
	defer shelf.close()
	exporter := &usbip.Exporter{OnEvent: func(e usbip.Event) { logEvent(log, e) }}
	for _, d := range shelf {
		if err := exporter.Add(d.busid, d); err != nil {
			return err
		}
	}
	if _, _, err := net.SplitHostPort(listen); err != nil {
		return usageError{fmt.Errorf("--listen %s: want HOST:PORT, or :PORT for all of this machine's addresses: %w", listen, err)}
	}
	listener, err := net.Listen("tcp", listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w (another exporter is running, or usbipd: choose with --listen HOST:PORT)", err)
	}
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	for _, d := range shelf {
		fmt.Fprintf(out, "%s: %s, serial %s, on %s\n", d.busid, d.Descriptors().Product(), d.Descriptors().Serial(), listener.Addr())
	}

	ctx, cancel := context.WithCancel(cmd.Context())
	var telling sync.WaitGroup
	// A read of standard input cannot be ended, so this goroutine lives until
	// the process does; what it started is waited for.
	go shelf.listen(ctx, cmd.InOrStdin(), log, &telling)
	err = exporter.Serve(ctx, listener)
	cancel()
	telling.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func logEvent(log *slog.Logger, e usbip.Event) {
	switch e.Kind {
	case usbip.Imported:
		log.Info("imported", "busid", e.BusID, "peer", e.Peer)
	case usbip.Released:
		if e.Err != nil {
			log.Warn("released", "busid", e.BusID, "peer", e.Peer, "reason", e.Err)
			return
		}
		log.Info("released", "busid", e.BusID, "peer", e.Peer)
	case usbip.Limited:
		log.Warn("limited", "busid", e.BusID, "peer", e.Peer, "reason", e.Err)
	case usbip.Refused:
		log.Warn("refused", "busid", e.BusID, "peer", e.Peer, "reason", e.Err)
	}
}

// A shelf is the devices on offer, in order.
type shelf []shelved

type shelved struct {
	usb.Device
	busid string
}

// openShelf makes the devices that are named, all or none.
func openShelf(specs []string) (_ shelf, err error) {
	var s shelf
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for i, spec := range specs {
		kind, busid, named := strings.Cut(spec, ":")
		if !named {
			busid = fmt.Sprintf("1-%d", i+1)
		}
		if err := usbip.CheckBusID(busid); err != nil {
			return nil, fmt.Errorf("--device %s: %w", spec, err)
		}
		if s.find(busid) != nil {
			return nil, fmt.Errorf("--device %s: busid %s is taken by an earlier device", spec, busid)
		}
		dev, err := emulate.Open(kind, emulate.Options{Serial: fmt.Sprintf("%04d", i+1)})
		if err != nil {
			return nil, fmt.Errorf("--device %s: %w", spec, err)
		}
		s = append(s, shelved{dev, busid})
	}
	return s, nil
}

func (s shelf) close() {
	for _, d := range s {
		d.Close()
	}
}

func (s shelf) find(busid string) usb.Device {
	for _, d := range s {
		if d.busid == busid {
			return d.Device
		}
	}
	return nil
}

// listen tells devices what the lines of r say. What is told to one device
// waits for its host; it must not keep the others from being told.
func (s shelf) listen(ctx context.Context, r io.Reader, log *slog.Logger, telling *sync.WaitGroup) {
	lines := bufio.NewScanner(r)
	for lines.Scan() && ctx.Err() == nil {
		busid, text, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if busid == "" {
			continue
		}
		dev := s.find(busid)
		if dev == nil {
			log.Error("told nobody: no such busid", "busid", busid)
			continue
		}
		teller, ok := dev.(emulate.Teller)
		if !ok {
			log.Error("told nobody: this kind of device does not listen", "busid", busid)
			continue
		}
		telling.Go(func() {
			if err := teller.Tell(ctx, text); err != nil && ctx.Err() == nil {
				log.Error("not done", "busid", busid, "reason", err)
			}
		})
	}
}
