package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// usbIDs is where distributions keep the names of vendors and products: Debian,
// and most others.
var usbIDs = []string{"/usr/share/misc/usb.ids", "/usr/share/hwdata/usb.ids"}

func newList() *cobra.Command {
	var remote string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list -r HOST",
		Short: "List the devices an exporter offers",
		Long: "List the devices that an exporter offers and nobody uses. Names come from\n" +
			usbIDs[0] + " where there is one (package usb.ids).",
		Example: "  usbns list -r 127.0.0.1\n  usbns list -r desk.example:3240 --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			devices, err := listRemote(cmd, remote)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), devices)
			}
			if len(devices) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "usbns: info: no exportable devices found on", remote)
				return nil
			}
			return printList(cmd.OutOrStdout(), remote, devices, readNames())
		},
	}
	cmd.Flags().StringVarP(&remote, "remote", "r", "", "exporter, as HOST or HOST:PORT")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(cmd.MarkFlagRequired("remote"))
	return cmd
}

func listRemote(cmd *cobra.Command, remote string) ([]usbip.DeviceInfo, error) {
	conn, err := dial(cmd.Context(), remote)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return usbip.List(cmd.Context(), conn)
}

func dial(ctx context.Context, remote string) (net.Conn, error) {
	if host, _ := usbip.SplitAddr(remote); host == "" { // which would be this machine
		return nil, usageError{fmt.Errorf("--remote %q: want HOST or HOST:PORT", remote)}
	}
	conn, err := usbip.Dial(ctx, remote)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("%w (nobody listens there: start usbns export, or usbipd)", err)
	}
	return conn, err
}

// listed is a device in JSON.
type listed struct {
	BusID   string `json:"busid"`
	Path    string `json:"path"`
	Vendor  string `json:"vendor"`
	Product string `json:"product"`
	Class   string `json:"class"`
	Speed   string `json:"speed"`
}

func printJSON(w io.Writer, devices []usbip.DeviceInfo) error {
	list := make([]listed, 0, len(devices))
	for _, d := range devices {
		list = append(list, listed{
			BusID: d.BusID, Path: d.Path,
			Vendor: fmt.Sprintf("%04x", d.Vendor), Product: fmt.Sprintf("%04x", d.Product),
			Class: fmt.Sprintf("%02x/%02x/%02x", d.Class, d.SubClass, d.Protocol),
			Speed: d.Speed.String(),
		})
	}
	return writeJSON(w, list)
}

// printList prints what the stock tool prints (tools/usb/usbip/src/usbip_list.c
// in the kernel), which scripts read.
func printList(w io.Writer, host string, devices []usbip.DeviceInfo, names *usb.Names) error {
	fmt.Fprintf(w, "Exportable USB devices\n======================\n - %s\n", host)
	for _, d := range devices {
		fmt.Fprintf(w, "%11s: %s\n", d.BusID, productName(names, d.Vendor, d.Product))
		fmt.Fprintf(w, "%11s: %s\n", "", d.Path)
		fmt.Fprintf(w, "%11s: %s\n", "", className(names, d.Class, d.SubClass, d.Protocol))
		for i, c := range d.Interfaces {
			fmt.Fprintf(w, "%11s: %2d - %s\n", "", i, className(names, c.Class, c.SubClass, c.Protocol))
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return fmt.Errorf("print the list: %w", err)
		}
	}
	return nil
}

func productName(names *usb.Names, vendor, product uint16) string {
	return fmt.Sprintf("%s : %s (%04x:%04x)",
		or(names.Vendor(vendor), "unknown vendor"),
		or(names.Product(vendor, product), "unknown product"), vendor, product)
}

// readNames returns nil, which knows no names, where there is no file of them.
func readNames() *usb.Names {
	for _, path := range usbIDs {
		if names, err := readNamesFile(path); err == nil {
			return names
		}
	}
	return nil
}

func readNamesFile(path string) (*usb.Names, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return usb.ReadNames(f)
}

func or(name, unknown string) string {
	if name == "" {
		return unknown
	}
	return name
}

func className(names *usb.Names, class, subclass, protocol uint8) string {
	if class == 0 && subclass == 0 && protocol == 0 {
		return "(Defined at Interface level) (00/00/00)"
	}
	c, s, p := names.Class(class, subclass, protocol)
	return fmt.Sprintf("%s / %s / %s (%02x/%02x/%02x)",
		or(c, "unknown class"), or(s, "unknown subclass"), or(p, "unknown protocol"), class, subclass, protocol)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
