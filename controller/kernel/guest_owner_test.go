//go:build guest

package kernel_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/controller/kernel"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/internal/usbiptest"
	"github.com/usbns/usbns/usb"
)

// What the process that is to be killed is told.
const (
	ownerDir    = "USBNS_TEST_DIR"
	ownerAddr   = "USBNS_TEST_ADDR"
	ownerDriver = "USBNS_TEST_DRIVER"
)

func init() { owner = ownDevice }

// ownDevice attaches a device, prints what restores it, and waits to be killed.
func ownDevice() int {
	d := kernel.New(kernel.Options{Dir: os.Getenv(ownerDir), EnumerateTimeout: patient, KernelTimeout: patient})
	var driver controller.Driver = d
	if os.Getenv(ownerDriver) == "direct" {
		driver = d.Direct()
	}
	conn, err := net.Dial("tcp", os.Getenv(ownerAddr))
	if err == nil {
		var a controller.Attachment
		if a, err = driver.Attach(context.Background(), controller.Plug{Conn: conn, Speed: usb.SpeedHigh, DevID: devid}); err == nil {
			fmt.Println(base64.StdEncoding.EncodeToString(a.Saved()), a.Path())
			<-a.Done()
		}
	}
	fmt.Println("ended", err)
	return 1
}

// orphan attaches a scanner in a process that is killed then.
func orphan(t *testing.T, dir, driver string) (s *emulate.Scanner, saved []byte, path string) {
	t.Helper()
	s, err := emulate.NewScanner(emulate.Options{Speed: usb.SpeedHigh})
	must.OK(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	defer l.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerEnv+"=1", ownerDir+"="+dir, ownerAddr+"="+l.Addr().String(), ownerDriver+"="+driver)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must.OK(t, err)
	must.OK(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	peer, err := l.Accept()
	must.OK(t, err)
	t.Cleanup(func() { s.Close() })
	usbiptest.Serve(t, peer, devid, s)
	line, err := bufio.NewReader(out).ReadString('\n')
	must.OK(t, err)
	var text string
	if _, err := fmt.Sscan(line, &text, &path); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	saved, err = base64.StdEncoding.DecodeString(text)
	must.OK(t, err)
	return s, saved, path
}

// A checked device goes on working when the process that attached it is killed,
// and the next one finds it.
func TestGuestRestore(t *testing.T) {
	must.NotLeak(t)
	d := newGuestDriver(t)
	dir := must.TempDir(t)
	again := func() *kernel.Driver {
		k := kernel.New(kernel.Options{Dir: dir})
		t.Cleanup(func() { must.OK(t, k.Close()) })
		return k
	}
	s, saved, path := orphan(t, dir, "checked")
	scan(t, path, s)
	k := again()
	a, err := k.Restore(t.Context(), controller.Plug{}, saved)
	must.OK(t, err)
	if a.Path() != path || a.Descriptors().Product() != "usbns bar-code scanner" {
		t.Errorf("restored is %q at %s", a.Descriptors().Product(), a.Path())
	}
	scan(t, path, s)
	// Its port is not for others, who get another.
	other, err := emulate.NewScanner(emulate.Options{Speed: usb.SpeedHigh})
	must.OK(t, err)
	b, err := d.Attach(t.Context(), exportDevice(t, other))
	must.OK(t, err)
	if b.Path() == path {
		t.Errorf("two devices at %s", path)
	}
	a.Detach()
	scan(t, b.Path(), other)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the detach: %v", err)
	}
	b.Detach()

	// The worker dies with nobody there to see it.
	_, saved, path = orphan(t, dir, "checked")
	killWorker(t, filepath.Join(dir, "0"))
	if _, err := again().Restore(t.Context(), controller.Plug{}, saved); !errors.Is(err, controller.ErrNotRestored) {
		t.Errorf("error %v", err)
	}
	vanishes(t, path)

	_, saved, path = orphan(t, dir, "direct")
	if _, err := again().Direct().Restore(t.Context(), controller.Plug{}, saved); !errors.Is(err, controller.ErrNotRestored) {
		t.Errorf("error %v", err)
	}
	vanishes(t, path)
}
