//go:build guest

//vmexec:modules usbhid hid-generic evdev

package sysfs

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/policy"
)

// kernelRounds attaches, lists and detaches over and over. The port is free some
// time after its detach.
const kernelRounds = `
for i in $(seq $2); do
	until why=$(usbip attach -r 127.0.0.1 -b $1 2>&1); do
		case $why in *busy*) ;; *) echo "$why"; exit 1 ;; esac
	done
	usbip port 2>&1 | grep -q '^Port 00: <Port in Use>' || { cat ` + stockDir + `/status; exit 1; }
	usbip detach -p 0 >/dev/null 2>&1 || { echo "detach fails"; exit 1; }
	until grep -q '^hs  0000 004 ' ` + stockDir + `/status; do :; done
done`

// Debian's own usbip in two rooms, with devices that are in the kernel.
func TestGuestStockToolWithKernel(t *testing.T) {
	needFUSE(t)
	noLeaks(t)
	export(t, 2)
	driver := kernel.New(kernel.Options{Dir: must.TempDir(t), EnumerateTimeout: patience, KernelTimeout: patience})
	t.Cleanup(func() {
		if err := driver.Close(); err != nil {
			t.Error(err)
		}
	})
	table := new(controller.Table)
	made, err := table.Create(controller.Config{Driver: driver, Policy: policy.Open(), HubPorts: 2}, 2)
	if err != nil {
		t.Fatal(err)
	}
	f := mountUntilEnd(t, Options{Table: table, Identify: identify, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	rooms := []room{newRoom(t, "private"), newRoom(t, "private")}
	for i, r := range rooms {
		r.bind(f, made[i])
		r.mustRun("usbip", "attach", "-r", "127.0.0.1", "-b", fmt.Sprintf("1-%d", i+1))
	}
	for i, r := range rooms {
		out := r.mustRun("usbip", "port")
		if strings.Count(out, "Port 00: <Port in Use>") != 1 || strings.Count(out, "<Port in Use>") != 1 ||
			!strings.Contains(out, fmt.Sprintf("usbip://127.0.0.1:3240/1-%d", i+1)) {
			t.Errorf("port of room %d\n%s", i, out)
		}
	}
	rooms[0].mustRun("usbip", "detach", "-p", "0")
	if out := rooms[1].mustRun("usbip", "port"); strings.Count(out, "<Port in Use>") != 1 {
		t.Errorf("after the other's detach\n%s", out)
	}
	rooms[1].mustRun("usbip", "detach", "-p", "0")

	var both sync.WaitGroup
	for i, r := range rooms {
		both.Go(func() {
			if out, err := r.run("sh", "-c", kernelRounds, "sh", fmt.Sprintf("1-%d", i+1), "10"); err != nil {
				t.Errorf("rounds of room %d: %v\n%s", i, err, out)
			}
		})
	}
	both.Wait()
}
