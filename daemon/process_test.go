//go:build linux

package daemon

import (
	"os"
	"testing"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/internal/must"
)

func TestOwnerIsTheSameProcess(t *testing.T) {
	o, err := ownerOf(control.Container{PID: os.Getpid(), Root: "/"})
	must.OK(t, err)
	if o.Started == 0 || o.Boot == "" {
		t.Errorf("owner %+v", o)
	}
	must.OK(t, o.still())
	for name, other := range map[string]func(*owner){
		"later process": func(o *owner) { o.Started++ },
		"other boot":    func(o *owner) { o.Boot = "before" },
		"no process":    func(o *owner) { o.PID = 1 << 22 }, // above every pid_max
	} {
		another := o
		other(&another)
		if another.still() == nil {
			t.Errorf("%s: taken for the same", name)
		}
	}
}

func TestStartTime(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 5 6"
	for stat, want := range map[string]uint64{
		"7 (sh)" + rest:       4711,
		"7 (a) b (c)" + rest:  4711,
		"7 (sh":               0,
		"":                    0,
		"7 (sh) S 1 2 3 0 -1": 0,
	} {
		got, err := startTime(stat)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", stat, got, err)
		}
	}
}
