//go:build linux

package vhci_test

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/vhci"
)

// List what is attached to a controller, and where a device would go next.
func Example() {
	// A program leaves Root empty, or calls vhci.Open: this one brings its own
	// /sys to run everywhere.
	sysfs := vhci.Sysfs{Root: exampleTree()}
	defer os.RemoveAll(sysfs.Root)

	driver, err := sysfs.Open(0)
	if errors.Is(err, vhci.ErrNotLoaded) {
		log.Fatal(err) // it says what to do
	} else if err != nil {
		log.Fatal(err)
	}
	defer driver.Close()

	ports, err := driver.AllPorts()
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range ports {
		if p.Status == vhci.StatusUsed {
			fmt.Printf("Port %02d: <%s> at %s speed, %s here\n", p.Number, p.Status, p.Speed, p.BusID)
		}
	}
	free, err := driver.FreePort(usb.SpeedHigh)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("next: driver.Attach(vhci.AttachRequest{Port: %d, ...})\n", free)

	// Output:
	// Port 00: <Port in Use> at high speed, 1-1 here
	// next: driver.Attach(vhci.AttachRequest{Port: 1, ...})
}

func exampleTree() string {
	root, err := os.MkdirTemp("", "vhci")
	if err != nil {
		log.Fatal(err)
	}
	dir := filepath.Join(root, "devices/platform/vhci_hcd.0")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		log.Fatal(err)
	}
	status := vhci.AppendStatus(nil, []vhci.Port{
		{Number: 0, Hub: vhci.HubHigh, Status: vhci.StatusUsed, Speed: usb.SpeedHigh, DevID: 1<<16 | 4, SockFD: 3, BusID: "1-1"},
		{Number: 1, Hub: vhci.HubHigh, Status: vhci.StatusNull},
		{Number: 2, Hub: vhci.HubSuper, Status: vhci.StatusNull},
		{Number: 3, Hub: vhci.HubSuper, Status: vhci.StatusNull},
	})
	for name, text := range map[string][]byte{"nports": []byte("4\n"), "status": status} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
	return root
}
