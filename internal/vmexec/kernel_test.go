package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

func TestModulesLoadAfterWhatTheyDependOn(t *testing.T) {
	requireGuest(t)
	for version := range kernelTrees {
		in, err := install(t.Context(), io.Discard, version, nil)
		if err != nil {
			t.Fatal(err)
		}
		modules, err := in.kernel.resolve([]string{"usb-storage", "vhci_hcd", "usb_storage"}, map[string]bool{})
		if err != nil {
			t.Fatal(err)
		}
		place := map[string]int{}
		for i, m := range modules {
			if _, twice := place[m.name]; twice {
				t.Errorf("%s: %s twice", version, m.name)
			}
			place[m.name] = i
			deps, err := dependencies(m.data)
			if err != nil {
				t.Fatal(err)
			}
			for _, dep := range deps {
				if _, ok := place[moduleName(dep)]; !ok && !in.kernel.builtin[moduleName(dep)] {
					t.Errorf("%s: %s comes before %s", version, m.name, dep)
				}
			}
		}
		for _, want := range []string{"usb_storage", "vhci_hcd", "usbip_core", "usbcore"} {
			if _, ok := place[want]; !ok {
				t.Errorf("%s: no %s", version, want)
			}
		}
		// Both kernels have it, one of them built in.
		if _, err := in.kernel.resolve([]string{"fuse"}, map[string]bool{}); err != nil {
			t.Errorf("%s: %v", version, err)
		}
		_, err = in.kernel.resolve([]string{"nonesuch"}, map[string]bool{})
		if err == nil || !strings.Contains(err.Error(), "no module nonesuch") {
			t.Errorf("%s: error %v", version, err)
		}
	}
}

func TestUnknownTree(t *testing.T) {
	requireGuest(t)
	_, err := install(t.Context(), io.Discard, "6.12", []string{"nonesuch"})
	if err == nil || !strings.Contains(err.Error(), "no tree nonesuch: there are runtimes") {
		t.Errorf("error %v", err)
	}
}

func TestDependenciesOfNoModule(t *testing.T) {
	if _, err := dependencies([]byte("not an ELF file")); err == nil {
		t.Error("no error")
	}
}

func TestBzImagePayload(t *testing.T) {
	image := make([]byte, 4096)
	copy(image[0x202:], "HdrS")
	image[0x1f1] = 1 // after two sectors
	binary.LittleEndian.PutUint32(image[0x248:], 8)
	binary.LittleEndian.PutUint32(image[0x24c:], 16)
	copy(image[1024+8:], "0123456789abSIZE")
	got, err := bzImagePayload(image)
	if err != nil || string(got) != "0123456789ab" {
		t.Errorf("%q, %v", got, err)
	}

	for name, change := range map[string]func([]byte) []byte{
		"short":            func(b []byte) []byte { return b[:0x24f] },
		"no magic":         func(b []byte) []byte { b[0x202] = 0; return b },
		"offset outside":   func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x248:], 1<<32-1); return b },
		"length outside":   func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x24c:], 1<<32-1); return b },
		"length too small": func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x24c:], 3); return b },
	} {
		if got, err := bzImagePayload(change(bytes.Clone(image))); err == nil {
			t.Errorf("%s: %q and no error", name, got)
		}
	}
}

func TestTail(t *testing.T) {
	var console tail
	for range 2 * tailSize {
		console.Write([]byte("a\r\n"))
	}
	console.Write([]byte("end\r\n"))
	got := console.String()
	if len(got) > tailSize || !strings.HasSuffix(got, "a\na\nend") {
		t.Errorf("%d bytes, ending in %q", len(got), got[max(0, len(got)-10):])
	}
}
