//go:build guest

//vmexec:modules vhci-hcd

package main

import (
	"os"
	"testing"
)

func TestGuestSeesTestdata(t *testing.T) {
	got, err := os.ReadFile("testdata/greeting")
	if err != nil || string(got) != "hello\n" {
		t.Errorf("testdata/greeting = %q, %v", got, err)
	}
}
