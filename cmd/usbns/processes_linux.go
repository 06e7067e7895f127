package main

import "github.com/usbns/usbns/worker"

// processes are the names under which the daemon starts this binary again.
var processes = map[string]func() int{worker.Name: worker.Main}
