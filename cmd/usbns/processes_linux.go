package main

import (
	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/worker"
)

// processes are the names under which this binary is started again.
var processes = map[string]func() int{
	worker.Name:        worker.Main,
	escape.ProcessName: escape.Main,
}
