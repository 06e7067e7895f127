//go:build guest

//vmexec:tree runtimes
//vmexec:modules overlay vhci-hcd fuse

package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/usbns/usbns/container"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/internal/runtimestest"
	"github.com/usbns/usbns/sysfs"
)

// A call is what a hook found.
type call struct {
	Container Container
	Error     string
	// Mounts are the container's /sys and /dev.
	Mounts []string
}

const (
	callsFile  = "/tmp/calls"
	serverName = "/tmp/hook.sock"
)

func TestMain(m *testing.M) {
	if kind, ok := strings.CutSuffix(filepath.Base(os.Args[0]), "-test-hook"); ok {
		if err := runHook(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runHook is the hook: it notes what it is told.
func runHook(kind string) error {
	var c call
	var err error
	if kind == "lxc" {
		c.Container, err = ReadLXC(os.Getenv)
	} else {
		c.Container, err = ReadOCI(os.Stdin)
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
	if c.Container.PID != 0 {
		if err := askServer(c.Container); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(callsFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	return json.NewEncoder(f).Encode(c)
}

// askServer has a test that listens prepare the container.
func askServer(c Container) error {
	conn, err := net.Dial("unix", serverName)
	if err != nil {
		return nil // this test does not
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(c); err != nil {
		return err
	}
	var complaint string
	if err := json.NewDecoder(conn).Decode(&complaint); err != nil {
		return err
	}
	if complaint != "" {
		return errors.New(complaint)
	}
	return nil
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

// startHooked starts a container that calls the hooks.
func startHooked(t *testing.T, r runtimestest.Runtime, userNS bool) *runtimestest.Container {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lxc-test-hook", "oci-test-hook"} {
		if err := os.Symlink(exe, filepath.Join("/usr/bin", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	return runtimestest.Start(t, r, runtimestest.Config{
		Name:   "box",
		UserNS: userNS,
		LXC:    "lxc.hook.start-host = /usr/bin/lxc-test-hook\n",
		OCI:    `{"hooks": {"createRuntime": [{"path": "/usr/bin/oci-test-hook"}]}}`,
	})
}

func TestGuestHooks(t *testing.T) {
	for _, r := range runtimestest.All {
		t.Run(string(r), func(t *testing.T) {
			runtimestest.CheckLeaks(t)
			c := startHooked(t, r, false)
			pid, root := c.PID(), c.Rootfs
			if r == runtimestest.LXC {
				root = "/"
			}
			c.Stop()
			got := calls(t)
			if err := os.Remove(callsFile); err != nil {
				t.Fatal(err)
			}
			want := []call{{Container: Container{"box", pid, root}, Mounts: []string{"sys", "dev"}}}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("hooks were told %+v, want %+v", got, want)
			}
		})
	}
}

// What a hook has bound is there before the first program of the container.
func TestGuestHookBindsController(t *testing.T) {
	var table controller.Table
	controllers, err := table.Create(controller.Config{Driver: &controller.User{}, HubPorts: 3}, 1)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := sysfs.Mount("/run/tree", sysfs.Options{
		Table:    &table,
		Identify: func(tid int) (sysfs.Caller, error) { return container.IdentifyCaller(tid) },
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	serveHooks(t, func(c Container) error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", c.PID))
		if err != nil {
			return err
		}
		defer ns.Close()
		return container.BindController(container.Binding{
			Dir: tree.NamelessDir(controllers[0]), Server: tree.Server(), Namespace: ns, Root: c.Root,
		})
	})
	for _, r := range runtimestest.All {
		for _, userNS := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/userns=%v", r, userNS), func(t *testing.T) {
				runtimestest.CheckLeaks(t)
				c := startHooked(t, r, userNS)
				out, err := c.Run("cat", "/sys/devices/platform/vhci_hcd.0/nports")
				if err != nil || out != "6\n" {
					t.Errorf("nports: %q, %v", out, err)
				}
				if out, err := c.Run("usbip", "port"); err != nil || !strings.HasPrefix(out, "Imported USB devices") {
					t.Errorf("usbip port: %v\n%s", err, out)
				}
			})
		}
	}
}

// serveHooks answers the hooks of containers that start.
func serveHooks(t *testing.T, prepare func(Container) error) {
	t.Helper()
	l, err := net.Listen("unix", serverName)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var c Container
			err = json.NewDecoder(conn).Decode(&c)
			if err == nil {
				err = prepare(c)
			}
			complaint := ""
			if err != nil {
				complaint = err.Error()
			}
			_ = json.NewEncoder(conn).Encode(complaint) // the hook fails without
			conn.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		served.Wait()
	})
}
