package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// TestCDIDeviceIsTheHook has the library of Docker, Podman, containerd and CRI-O
// add a device by what usbns config prints. The container gets the hook that runc
// and crun are tested with.
func TestCDIDeviceIsTheHook(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"alice", "0"} {
		text := execute(t, "config", "cdi", "-i", name)
		if err := os.WriteFile(filepath.Join(dir, "usbns-"+name+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dir), cdi.WithAutoRefresh(false))
	if err != nil {
		t.Fatal(err)
	}
	if errs := cache.GetErrors(); len(errs) != 0 {
		t.Fatal(errs)
	}
	for _, name := range []string{"alice", "0"} {
		var got, want oci.Spec
		if missing, err := cache.InjectDevices(&got, "usbns.dev/controller="+name); err != nil {
			t.Fatalf("%v: %v", missing, err)
		}
		if err := json.Unmarshal([]byte(execute(t, "config", "oci", "-i", name)), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.Hooks, got.Hooks); diff != "" {
			t.Errorf("of config oci (-) and config cdi (+):\n%s", diff)
		}
	}
}
