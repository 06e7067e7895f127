//go:build linux

package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/benchtable"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
)

// daemonName as argv[0] makes a daemon of this program, with a run directory and
// a vault for the devices of the driver kernel.
const daemonName = "usbns-test-daemon"

func TestMain(m *testing.M) {
	if os.Args[0] == daemonName {
		os.Exit(daemonMain(os.Args[1], os.Args[2]))
	}
	os.Exit(benchtable.Main(m, nil))
}

func daemonMain(dir, vault string) int {
	go func() { // ends with the test's process
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(2)
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	open := func(string, *slog.Logger) (*backend, error) { return openVault(vault), nil }
	if err := run(ctx, dir, open, log, func() { fmt.Println("ready") }); err != nil {
		log.Error("the daemon ends", "reason", err)
		return 1
	}
	return 0
}

// A process is a daemon in a process of its own.
type process struct {
	*exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
}

func runDir(tb testing.TB) string {
	tb.Helper()
	dir := must.TempDir(tb)
	tb.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(dir, "sys"), unix.MNT_DETACH) // of a killed daemon
	})
	return dir
}

// start calls then when the daemon's log first has text.
func start(t testing.TB, dir, vault, text string, then func(*process)) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("/proc/self/exe")}
	p.Args = []string{daemonName, dir, vault}
	p.Stderr = &tripwire{Writer: t.Output(), text: text, trip: func() { then(p) }}
	stdin, err := p.StdinPipe()
	must.OK(t, err)
	stdout, err := p.StdoutPipe()
	must.OK(t, err)
	must.OK(t, p.Start())
	p.stdin, p.stdout = stdin, bufio.NewReader(stdout)
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	return p
}

func startReady(t testing.TB, dir, vault string) *process {
	t.Helper()
	p := start(t, dir, vault, "", nil)
	p.awaitReady(t)
	return p
}

func (p *process) awaitReady(t testing.TB) {
	t.Helper()
	if line, err := p.stdout.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
}

func (p *process) end(signal os.Signal) {
	if p.ProcessState == nil {
		_ = p.Process.Signal(signal)
		_ = p.Wait()
		p.stdin.Close()
	}
}

type tripwire struct {
	io.Writer
	text string
	trip func()
	once sync.Once
}

func (w *tripwire) Write(b []byte) (int, error) {
	if w.text != "" && bytes.Contains(b, []byte(w.text)) {
		w.once.Do(w.trip)
	}
	return w.Writer.Write(b)
}

// A world is what its client was told: controllers by name.
type world struct {
	t      *testing.T
	client *control.Client
	random *rand.Rand
	known  map[string]known
	made   int
}

type known struct {
	Index int
	Ports map[int]string // what is in use, and whence
}

// act does something to a controller, and says to which.
func (w *world) act() (name string, err error) {
	ctx := w.t.Context()
	name = w.any()
	k := w.known[name]
	port := w.random.IntN(4)
	speed := usb.SpeedFull
	if port >= 2 {
		speed = usb.SpeedSuper
	}
	_, used := k.Ports[port]
	switch {
	case name == "":
		w.made++
		name = fmt.Sprint("c", w.made)
		made, err := w.client.Create(ctx, control.Create{Name: name, Driver: "kernel", HubPorts: 2})
		if err == nil {
			w.known[name] = known{made[0].Index, map[int]string{}}
		}
		return name, err
	case w.random.IntN(8) == 0:
		if err = w.client.Delete(ctx, name); err == nil {
			delete(w.known, name)
		}
	case used:
		if err = w.client.Detach(ctx, name, port); err == nil {
			delete(k.Ports, port)
		}
	default:
		w.made++
		busid := fmt.Sprint("1-", w.made)
		err = w.attach(name, port, speed, busid)
		for errors.Is(err, syscall.EBUSY) { // still being detached
			err = w.attach(name, port, speed, busid)
		}
		if err == nil {
			k.Ports[port] = busid
		}
	}
	return name, err
}

// any returns the name of a controller, or "" for one that is yet to be made.
func (w *world) any() string {
	if len(w.known) < 2 || len(w.known) < 6 && w.random.IntN(6) == 0 {
		return ""
	}
	names := slices.Sorted(maps.Keys(w.known)) // so that a seed makes the same actions again
	return names[w.random.IntN(len(names))]
}

func (w *world) attach(name string, port int, speed usb.Speed, busid string) error {
	dev, err := emulate.NewLoopback(emulate.Options{Speed: speed})
	must.OK(w.t, err)
	defer dev.Close()
	conn := serveTCP(w.t, dev)
	defer conn.Close()
	_, err = w.client.Attach(w.t.Context(), conn, control.Attach{
		Controller: name, Port: port, DevID: 1, Speed: int(speed), Remote: control.Remote{Host: "shop", Port: "3240", BusID: busid},
	})
	return err
}

// look asks the daemon for what there is.
func (w *world) look() map[string]known {
	list, err := w.client.Controllers(w.t.Context())
	must.OK(w.t, err)
	seen := make(map[string]known)
	for _, c := range list {
		ports, err := w.client.Ports(w.t.Context(), c.Name)
		must.OK(w.t, err)
		k := known{c.Index, map[int]string{}}
		for _, p := range ports {
			if p.Status == 6 {
				k.Ports[p.Number] = p.Remote.BusID
			}
		}
		seen[c.Name] = k
	}
	return seen
}

// TestKilledDaemon kills daemons amid their work. All that was said to be done is
// there with the next one, and no device that was let in is lost.
func TestKilledDaemon(t *testing.T) {
	dir, vault := runDir(t), t.TempDir()
	w := &world{t: t, client: control.NewClient(dir), random: rand.New(rand.NewPCG(1, 2)), known: map[string]known{}}
	unsure := "" // whose last request had no answer
	for round := range 6 {
		if round > 0 { // one that gets no further than to its first device
			amid := start(t, dir, vault, "msg=attached", func(p *process) { _ = p.Process.Kill() })
			_, _ = amid.stdout.ReadString('\n')
			amid.end(syscall.SIGKILL)
		}
		p := startReady(t, dir, vault)
		w.check(unsure, vault)
		signal := syscall.SIGKILL
		if round == 3 {
			signal = syscall.SIGTERM
		}
		unsure = w.actUntil(p, signal, 20)
	}
}

// check compares what there is with what was said to be done.
func (w *world) check(unsure, vault string) {
	w.t.Helper()
	seen := w.look()
	if k, ok := seen[unsure]; ok {
		w.known[unsure] = k
	} else {
		delete(w.known, unsure)
	}
	if diff := cmp.Diff(w.known, seen); diff != "" {
		w.t.Fatalf("not all is as it was said to be:\n%s", diff)
	}
	used := 0
	for _, k := range seen {
		used += len(k.Ports)
	}
	if devices, err := os.ReadDir(vault); err != nil || len(devices) != used {
		w.t.Fatalf("%d devices are attached, and %d ports in use: %v", len(devices), used, err)
	}
}

// actUntil acts until the daemon has ended, which is after some actions, and
// returns which controller the last of them was for.
func (w *world) actUntil(p *process, signal os.Signal, actions int) (name string) {
	var killing sync.WaitGroup
	defer killing.Wait()
	for i := 0; ; i++ {
		if i == actions {
			killing.Go(func() { p.end(signal) })
		}
		name, err := w.act()
		switch {
		case err != nil && i < actions:
			w.t.Fatalf("action %d, for %s: %v", i, name, err)
		case err != nil:
			w.t.Logf("after action %d, for %s: %v", i, name, err)
			return name
		}
	}
}
