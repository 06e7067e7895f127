package controller_test

import (
	"context"
	"fmt"
	"log"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/policy"
)

// A device made of Go on a port of a controller that no kernel knows of.
func Example() {
	var table controller.Table
	defer table.Close()
	made, err := table.Create(controller.Config{
		Name:     "shop",
		HubPorts: 2,
		Driver:   &controller.User{},
		Policy:   policy.Open(),
	}, 1)
	if err != nil {
		log.Fatal(err)
	}
	scanner, err := emulate.NewScanner(emulate.Options{})
	if err != nil {
		log.Fatal(err)
	}
	shop := made[0]
	if _, err := shop.Attach(context.Background(), 1, controller.Plug{Device: scanner, DevID: 1<<16 | 4}); err != nil {
		scanner.Close()
		log.Fatal(err)
	}
	fmt.Print(string(shop.AppendStatus(nil)))
	// Output:
	// hub port sta spd dev      sockfd local_busid
	// hs  0000 004 000 00000000 000000 0-0
	// hs  0001 006 002 00010004 000000 1-2
	// ss  0002 004 000 00000000 000000 0-0
	// ss  0003 004 000 00000000 000000 0-0
}
