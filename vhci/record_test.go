//go:build linux

package vhci_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/usbns/usbns/vhci"
)

func TestRecordFiles(t *testing.T) {
	records := vhci.Records{Dir: filepath.Join(t.TempDir(), "vhci_hcd")}
	for _, tt := range []struct {
		controller, port int
		rec              vhci.Record
		file, text       string
	}{
		{0, 0, vhci.Record{Host: "192.0.2.7", Port: "3240", BusID: "1-1"}, "port0", "192.0.2.7 3240 1-1\n"},
		{0, 17, vhci.Record{Host: "2001:db8::7%eth0", Port: "usbip", BusID: "3-2.4"}, "port17", "2001:db8::7%eth0 usbip 3-2.4\n"},
		{4, 17, vhci.Record{Host: "lab.example", Port: "3240", BusID: "usbip-vudc.0"}, "port4-17", "lab.example 3240 usbip-vudc.0\n"},
	} {
		if err := records.Write(tt.controller, tt.port, tt.rec); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(records.Dir, tt.file))
		if err != nil || string(text) != tt.text {
			t.Errorf("%s holds %q, %v; want %q", tt.file, text, err, tt.text)
		}
		if got, err := records.Read(tt.controller, tt.port); err != nil || got != tt.rec {
			t.Errorf("read %+v, %v; want %+v", got, err, tt.rec)
		}
	}
	for name, want := range map[string]fs.FileMode{"": 0o700 | fs.ModeDir, "port0": 0o600} {
		if info, err := os.Stat(filepath.Join(records.Dir, name)); err != nil || info.Mode() != want {
			t.Errorf("mode of %q is %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	if names, err := os.ReadDir(records.Dir); err != nil || len(names) != 3 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestRecordIsReplacedAndRemoved(t *testing.T) {
	records := vhci.Records{Dir: t.TempDir()}
	long := vhci.Record{Host: strings.Repeat("label.", 42) + "x", Port: "3240", BusID: "1-1"}
	short := vhci.Record{Host: "h", Port: "1", BusID: "1-2"}
	for _, rec := range []vhci.Record{long, short} {
		if err := records.Write(0, 3, rec); err != nil {
			t.Fatal(err)
		}
		if got, err := records.Read(0, 3); err != nil || got != rec {
			t.Errorf("read %+v, %v; want %+v", got, err, rec)
		}
	}
	for range 2 {
		if err := records.Remove(0, 3); err != nil {
			t.Fatal(err)
		}
	}
	if rec, err := records.Read(0, 3); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read after remove: %+v, %v", rec, err)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	records := vhci.Records{Dir: t.TempDir()}
	rapid.Check(t, func(t *rapid.T) {
		want := vhci.Record{
			Host:  rapid.StringMatching(`[a-z0-9.:%é-]{1,500}`).Draw(t, "host"),
			Port:  rapid.StringMatching(`[a-z0-9]{1,8}`).Draw(t, "port"),
			BusID: rapid.StringMatching(`[0-9]{1,3}-[0-9](\.[0-9]){0,6}`).Draw(t, "busid"),
		}
		controller, port := rapid.IntRange(0, 2).Draw(t, "controller"), rapid.IntRange(0, 29).Draw(t, "port number")
		if err := records.Write(controller, port, want); err != nil {
			t.Fatal(err)
		}
		if got, err := records.Read(controller, port); err != nil || got != want {
			t.Fatalf("read %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestWriteRefusesRecordsThatWouldNotComeBack(t *testing.T) {
	good := vhci.Record{Host: "h", Port: "3240", BusID: "1-1"}
	for name, spoil := range map[string]func(*vhci.Record){
		"no host":              func(r *vhci.Record) { r.Host = "" },
		"no port":              func(r *vhci.Record) { r.Port = "" },
		"no busid":             func(r *vhci.Record) { r.BusID = "" },
		"a space":              func(r *vhci.Record) { r.Host = "a b" },
		"a newline":            func(r *vhci.Record) { r.BusID = "1-1\nx" },
		"a NUL":                func(r *vhci.Record) { r.Host = "a\x00" },
		"a terminal's escape":  func(r *vhci.Record) { r.Host = "\x1b[2J" },
		"its 8-bit twin":       func(r *vhci.Record) { r.Host = "\u009b2J" },
		"a space of Unicode":   func(r *vhci.Record) { r.Host = "a\u2003b" },
		"text turned round":    func(r *vhci.Record) { r.Host = "\u202eb" },
		"no UTF-8":             func(r *vhci.Record) { r.Host = "a\xff" },
		"a busid of 32 bytes":  func(r *vhci.Record) { r.BusID = strings.Repeat("1", 32) },
		"a host of 4096 bytes": func(r *vhci.Record) { r.Host = strings.Repeat("a", 4096) },
	} {
		t.Run(name, func(t *testing.T) {
			records := vhci.Records{Dir: t.TempDir()}
			if err := records.Write(0, 1, good); err != nil {
				t.Fatal(err)
			}
			bad := good
			spoil(&bad)
			if err := records.Write(0, 1, bad); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("error %v, want EINVAL", err)
			}
			if got, err := records.Read(0, 1); err != nil || got != good {
				t.Errorf("the record before is now %+v, %v", got, err)
			}
		})
	}
}

func TestReadRefusesHostileRecords(t *testing.T) {
	for name, text := range map[string]string{
		"empty":                   "",
		"a newline":               "\n",
		"cut short":               "192.0.2.7 3240 1-",
		"two fields":              "192.0.2.7 3240\n",
		"four fields":             "192.0.2.7 3240 1-1 x\n",
		"two spaces":              "192.0.2.7  3240 1-1\n",
		"two lines":               "192.0.2.7 3240 1-1\n192.0.2.8 3240 1-1\n",
		"a carriage return":       "192.0.2.7 3240 1-1\r\n",
		"a terminal's escape":     "\x1b[2J 3240 1-1\n",
		"a long busid":            "h 1 " + strings.Repeat("1", 32) + "\n",
		"more than fits a record": strings.Repeat("a", 4096) + " 1 1-1\n",
	} {
		t.Run(name, func(t *testing.T) {
			records := vhci.Records{Dir: t.TempDir()}
			if err := os.WriteFile(filepath.Join(records.Dir, "port0"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			rec, err := records.Read(0, 0)
			if !errors.Is(err, syscall.EINVAL) {
				t.Errorf("read %+v, %v; want EINVAL", rec, err)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("the error has the record's characters: %q", err)
			}
		})
	}
}

func TestReadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	records := vhci.Records{Dir: dir}
	elsewhere := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(elsewhere, []byte("h 1 1-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for port, create := range []func(path string) error{
		func(path string) error { return os.Symlink(elsewhere, path) },
		func(path string) error { return unix.Mkfifo(path, 0o600) },
		func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		if err := create(filepath.Join(dir, fmt.Sprintf("port%d", port))); err != nil {
			t.Fatal(err)
		}
		if rec, err := records.Read(0, port); err == nil {
			t.Errorf("port %d: read %+v", port, rec)
		}
	}
	// Writing replaces the link, and leaves what it led to.
	if err := records.Write(0, 0, vhci.Record{Host: "mine", Port: "2", BusID: "1-2"}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(elsewhere); err != nil || string(text) != "h 1 1-1\n" {
		t.Errorf("the link's target is now %q, %v", text, err)
	}
}

func TestRecordErrorsNameTheFile(t *testing.T) {
	records := vhci.Records{Dir: filepath.Join(t.TempDir(), "none/vhci_hcd")}
	want := filepath.Join(records.Dir, "port2-5")
	_, readErr := records.Read(2, 5)
	for _, err := range []error{readErr, records.Write(2, 5, vhci.Record{Host: "h", Port: "1", BusID: "1-1"})} {
		op, ok := errors.AsType[*vhci.OpError](err)
		if !ok || op.Path != want || op.Port != 5 || strings.Count(err.Error(), want) != 1 {
			t.Errorf("%v does not name %s once", err, want)
		}
	}
}

func FuzzReadRecord(f *testing.F) {
	f.Add("192.0.2.7 3240 1-1\n")
	f.Add("")
	f.Add("a b c d\n")
	records := vhci.Records{Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(filepath.Join(records.Dir, "port0"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		rec, err := records.Read(0, 0)
		if err != nil {
			return
		}
		if again := rec.Host + " " + rec.Port + " " + rec.BusID + "\n"; again != text {
			t.Fatalf("%q read as %+v", text, rec)
		}
	})
}
