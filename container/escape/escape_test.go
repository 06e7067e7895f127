//go:build linux

package escape

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/usbns/usbns/internal/must"
)

var (
	ownTarget = Target{
		BusID: "1-1", Path: "/sys/devices/platform/vhci_hcd.0/usb1/1-1", Serial: "OWN-4711", Port: 0,
		Nodes: []Node{{Name: "bus/usb/001/002", Major: 189, Minor: 1}},
	}
	hersTarget = Target{
		BusID: "1-2", Path: "/sys/devices/platform/vhci_hcd.0/usb1/1-2", Serial: "HERS-0815", Port: 1,
		Nodes: []Node{{Name: "bus/usb/001/003", Major: 189, Minor: 2}, {Name: "input/event3", Major: 13, Minor: 67}},
		Names: []string{"hers.example"},
	}
)

// A fakeRoot is a file system to be searched.
type fakeRoot struct {
	t   *testing.T
	dir string
}

func newRoot(t *testing.T, files map[string]string) fakeRoot {
	t.Helper()
	r := fakeRoot{t, t.TempDir()}
	for name, text := range files {
		path := filepath.Join(r.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(path, []byte(text), 0o644)
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = errors.Join(os.Remove(path), os.Symlink(target, path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r fakeRoot) try(name string, own bool) Result {
	r.t.Helper()
	all := Cases()
	i := slices.IndexFunc(all, func(c Case) bool { return c.Name == name })
	if i < 0 {
		r.t.Fatalf("no case %s", name)
	}
	a := &attempt{Known: Known{Own: ownTarget, Neighbour: hersTarget}, own: own, root: r.dir, dir: r.t.TempDir()}
	return a.result(all[i])
}

// What is found and what is not: each case sees the neighbour in the first
// file, and not in the second.
func TestSearches(t *testing.T) {
	const status = "hub port sta spd dev      sockfd local_busid\n"
	for _, test := range []struct{ name, file, hers, own string }{
		{"sysfs-path", hersTarget.Path + "/serial", "HERS-0815\n", "OWN-4711\n"},
		{"sysfs-bus", "/sys/bus/usb/devices/1-2", "-> ../1-2", ""},
		{"sysfs-tree", "/sys/class/input/event3", "-> ../../devices/none", ""},
		{"sysfs-tree", "/sys/class/input/input9/uniq", "HERS-0815\n", "HERS-081\n"},
		{"sysfs-tree", "/sys/class/x/uevent", "HID_UNIQ=HERS-0815\n", "MODALIAS=usb:v1D6BpHERS-0815d0612\n"},
		{"sysfs-tree", "/sys/class/x/y", "-> ../usb1/1-2/1-2:1.0/z", "-> ../usb1/1-20/1-20:1.0/z"},
		{"sysfs-tree", "/sys/class/x/y", "-> ../1-2:1.0", "-> ../1-2.1:1.0"},
		{"proc-input", "/proc/bus/input/devices", "U: Uniq=HERS-0815", "U: Uniq=OWN-4711"},
		{"proc-input", "/proc/bus/input/devices", "H: Handlers=sysrq kbd event3 \n", "H: Handlers=sysrq kbd event33 \n"},
		{"proc-input", "/proc/bus/input/devices", "S: Sysfs=/devices/platform/vhci_hcd.0/usb1/1-2/1-2:1.0", "S: Sysfs=/devices/platform/vhci_hcd.0/usb1/1-2.1/1-2.1:1.0"},
		{"attach-records", "/run/vhci_hcd/port3", "hers.example 3240 1-1", "own.example 3240 1-1"},
		{"udev-database", "/run/udev/data/c189:2", "", "E:ID_SERIAL=HERS-0815x"},
		{"socket-table", "/proc/net/unix", "/run/hers.example.sock", "/run/own.example.sock"},
		{"dev-tree", "/dev/input/by-id/usb-usbns_HERS-0815-event", "", ""},
		{"status-guess", "/sys/devices/platform/vhci_hcd.7/status", status + "hs  0001 006 002 00010002 000003 1-2\n", status + "hs  0001 006 002 00010002 000003 1-1\n"},
		{"attach-foreign", "/sys/devices/platform/vhci_hcd.0/status", status + "hs  0000 004 000 00000000 000000 0-0\n", status + "hs  0000 006 002 00010002 000003 1-1\n"},
	} {
		files := map[string]string{test.file: test.hers, "/sys/devices/platform/vhci_hcd.0/attach": ""}
		if r := newRoot(t, files).try(test.name, false); !r.Reached {
			t.Errorf("%s with %q in %s is blind: %s", test.name, test.hers, test.file, r.Text)
		}
		delete(files, test.file)
		if test.own != "" && !strings.Contains(test.own, "HERS-0815x") {
			files[test.file] = test.own
		}
		if r := newRoot(t, files).try(test.name, false); r.Reached {
			t.Errorf("%s with %q in %s sees what is not there: %s", test.name, test.own, test.file, r.Text)
		}
	}
}

// Numbers mean the own ports where the own controller is: those are not
// somebody else's.
func TestDetachSparesOwnDevice(t *testing.T) {
	const status = "hub port sta spd dev      sockfd local_busid\n"
	files := map[string]string{
		"/sys/devices/platform/vhci_hcd.0/status": status + "hs  0001 006 002 00010002 000003 1-1\n",
		"/sys/devices/platform/vhci_hcd.0/detach": "",
	}
	root := newRoot(t, files)
	if r := root.try("detach-port", false); !strings.Contains(r.Text, "detach took port 257") {
		t.Errorf("%+v", r)
	}
	if r := root.try("detach-port", true); !strings.Contains(r.Text, "detach took port 1,") {
		t.Errorf("%+v", r)
	}
}

func TestSocketsTell(t *testing.T) {
	dir := must.TempDir(t)
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "run/s"))
	if err != nil {
		t.Fatal(err)
	}
	told, taken := "OWN-4711", "/v1/controllers/0/ports/0"
	s := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/controllers/1/ports" {
			fmt.Fprint(w, told)
		} else if r.Method == http.MethodDelete && r.URL.Path != taken {
			http.NotFound(w, r)
		}
	})}
	ended := make(chan error)
	go func() { ended <- s.Serve(l) }()
	defer func() { s.Close(); <-ended }()
	root := fakeRoot{t, dir}
	if r := root.try("sockets", false); r.Reached {
		t.Errorf("%+v", r)
	}
	told = "HERS-0815"
	if r := root.try("sockets", false); !r.Reached {
		t.Errorf("%+v", r)
	}
	if r := root.try("sockets-foreign", false); r.Reached {
		t.Errorf("%+v", r)
	}
	taken = "/v1/controllers/2/ports/1"
	if r := root.try("sockets-foreign", false); !r.Reached {
		t.Errorf("%+v", r)
	}
}

func TestKnownMustTellApart(t *testing.T) {
	for _, change := range []func(*Known){
		func(k *Known) { k.Neighbour.Serial = "" },
		func(k *Known) { k.Own.BusID = "" },
		func(k *Known) { k.Own.Path = "" },
		func(k *Known) { k.Own.Serial = "HERS-08150" },
	} {
		k := Known{Own: ownTarget, Neighbour: hersTarget}
		if err := k.check(); err != nil {
			t.Errorf("good: %v", err)
		}
		change(&k)
		if err := Run(k, io.Discard); err == nil {
			t.Errorf("no error for %+v", k)
		}
	}
}

func TestKnownAsJSON(t *testing.T) {
	want := Known{Own: ownTarget, Neighbour: hersTarget}
	want.Own.Nodes = []Node{{Name: "x", Block: true, Handle: Handle{1, []byte{2, 3}}}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Known
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCasesAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Cases() {
		if c.Name == "" || c.Why == "" || c.try == nil || seen[c.Name] {
			t.Errorf("case %+v", c)
		}
		seen[c.Name] = true
	}
}
