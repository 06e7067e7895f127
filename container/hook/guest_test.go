//go:build guest

//vmexec:tree runtimes
//vmexec:modules overlay

package hook

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usbns/usbns/internal/runtimestest"
)

// A call is what a hook found.
type call struct {
	Container Container
	Error     string
	// Mounts are the container's /sys and /dev.
	Mounts []string
}

const callsFile = "/tmp/calls"

func TestMain(m *testing.M) {
	if kind, stage, ok := strings.Cut(filepath.Base(os.Args[0]), "-hook-"); ok {
		if err := runHook(kind, stage == "end"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runHook is the hook: it notes what it is told.
func runHook(kind string, ended bool) error {
	var c call
	var err error
	if kind == "lxc" {
		c.Container, err = ReadLXC(os.Getenv, ended)
	} else {
		c.Container, err = ReadOCI(os.Stdin, ended)
	}
	if err != nil {
		c.Error = err.Error()
	}
	if c.Container.PID != 0 {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.Container.PID))
		if err != nil {
			return err
		}
		for _, dir := range []string{"sys", "dev"} {
			if strings.Contains(string(text), " "+filepath.Join(c.Container.Root, dir)+" ") {
				c.Mounts = append(c.Mounts, dir)
			}
		}
	}
	f, err := os.OpenFile(callsFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	return json.NewEncoder(f).Encode(c)
}

func calls(t *testing.T) (all []call) {
	t.Helper()
	text, err := os.ReadFile(callsFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var c call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func TestGuestHooks(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lxc-hook-start", "lxc-hook-end", "oci-hook-start", "oci-hook-end"} {
		if err := os.Symlink(exe, filepath.Join("/usr/bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range runtimestest.All {
		t.Run(string(r), func(t *testing.T) {
			runtimestest.CheckLeaks(t)
			c := runtimestest.Start(t, r, runtimestest.Config{
				Name: "box",
				LXC:  "lxc.hook.start-host = /usr/bin/lxc-hook-start\nlxc.hook.post-stop = /usr/bin/lxc-hook-end\n",
				OCI: `{"hooks": {
					"createRuntime": [{"path": "/usr/bin/oci-hook-start"}],
					"poststop": [{"path": "/usr/bin/oci-hook-end"}]}}`,
			})
			pid, root := c.PID(), c.Rootfs
			if r == runtimestest.LXC {
				root = "/"
			}
			c.Stop()
			got := calls(t)
			if err := os.Remove(callsFile); err != nil {
				t.Fatal(err)
			}
			want := []call{{Container: Container{"box", pid, root}, Mounts: []string{"sys", "dev"}}, {Container: Container{ID: "box"}}}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("hooks were told %+v, want %+v", got, want)
			}
		})
	}
}
