//go:build !linux

package main

// processes are the names under which the daemon starts this binary again.
var processes map[string]func() int
