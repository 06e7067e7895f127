//go:build guest

package main

import (
	"os/exec"
	"testing"
)

// TestGuestListMatchesStockTool compares our list with that of the usbip in
// Debian, names included, to the letter.
func TestGuestListMatchesStockTool(t *testing.T) {
	r := startExport(t, "127.0.0.1:3240", "scanner", "signpad", "fingerprint", "serial", "disk", "audio", "loopback:3-1.4")
	stock, err := exec.CommandContext(t.Context(), "usbip", "list", "-r", "127.0.0.1").Output()
	if err != nil {
		t.Fatal(err)
	}
	if ours := execute(t, "list", "-r", "127.0.0.1"); ours != string(stock) {
		t.Errorf("usbns list prints\n%s\nusbip list prints\n%s", ours, stock)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}
