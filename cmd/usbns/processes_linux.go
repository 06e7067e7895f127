package main

import (
	"github.com/usbns/usbns/container/box"
	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/worker"
)

// processes are the names under which this binary is started again.
var processes = map[string]func() int{
	worker.Name:        worker.Main,
	box.InitName:       box.Main,
	escape.ProcessName: escape.Main,
}
