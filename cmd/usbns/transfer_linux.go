package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/usbns/usbns/control"
)

func newTransfer(dir *string) *cobra.Command {
	var port int
	var data string
	var timeout time.Duration
	var asJSON bool
	t := control.Transfer{}
	cmd := &cobra.Command{
		Use:   "transfer -p PORT",
		Short: "Make a transfer to a device that is kept in user space",
		Long: "Make one control, bulk or interrupt transfer to a device on a controller of the\n" +
			"driver user. All bytes are hexadecimal digits; what the device sends is one line.",
		Example: "  usbns transfer -p 0 --setup 8006000100001200            # read the device descriptor\n" +
			"  usbns transfer -p 0 --endpoint 0x81 --timeout 1m        # wait for a scanner's report\n" +
			"  usbns transfer -p 0 --endpoint 0x02 --data '55 53 42'   # send three bytes",
		Args: noArgs,
	}
	cmd.Flags().IntVarP(&port, "port", "p", 0, "port of the controller")
	cmd.Flags().Uint8VarP(&t.Endpoint, "endpoint", "e", 0, "endpoint, with 0x80 for IN")
	cmd.Flags().TextVar(&t.Setup, "setup", control.Hex(nil), "setup packet for endpoint 0, 8 bytes as `HEX`")
	cmd.Flags().StringVar(&data, "data", "", "bytes to send as `HEX`, - for those on standard input")
	cmd.Flags().IntVar(&t.Length, "length", 0, "bytes to ask for (default one packet)")
	cmd.Flags().DurationVar(&timeout, "timeout", control.DefaultTransferTimeout, "how long to wait for the device")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	ref := controllerFlag(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("port"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if t.Timeout = timeout.Milliseconds(); t.Timeout <= 0 {
			return usageError{fmt.Errorf("--timeout %v: want 1ms or more", timeout)}
		}
		if t.Length < 0 {
			return usageError{fmt.Errorf("--length %d: want a number of bytes", t.Length)}
		}
		if cmd.Flags().Changed("data") {
			if t.Data, err = readData(cmd.InOrStdin(), data); err != nil {
				return usageError{fmt.Errorf("--data: %w", err)}
			}
		}
		done, err := control.NewClient(*dir).Transfer(cmd.Context(), *ref, port, t)
		if err != nil {
			return err
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), done)
		}
		if len(done.Data) > 0 {
			fmt.Fprintln(cmd.OutOrStdout(), done.Data)
		}
		return nil
	}
	return cmd
}

// readData reads the bytes of an argument, or of stdin where that is "-".
func readData(stdin io.Reader, arg string) (data control.Hex, err error) {
	text := []byte(arg)
	if arg == "-" {
		const most = 4 * control.MaxTransfer // digits, and a space or colon after each
		if text, err = io.ReadAll(io.LimitReader(stdin, most+1)); err != nil {
			return nil, err
		}
		if len(text) > most {
			return nil, errors.New("that is more than a transfer moves")
		}
	}
	err = data.UnmarshalText(text)
	return data, err
}
