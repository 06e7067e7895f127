//go:build guest

//vmexec:modules usbip-host xhci-pci
//vmexec:qemu -device qemu-xhci,p2=8,p3=4 -device usb-kbd
//vmexec:qemu -blockdev driver=null-co,node-name=stick,size=67108864,read-zeroes=on -device usb-storage,drive=stick
//vmexec:qemu -audiodev none,id=quiet -device usb-audio,audiodev=quiet
//vmexec:qemu -chardev null,id=line -device usb-serial,chardev=line,always-plugged=on -device usb-ccid

package usbip_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// The tests here import devices that QEMU makes from the stock server, which is
// a user of the protocol that nobody wrote for this one.

// startUsbipd binds all devices of the guest to usbip-host, serves them, and
// returns their busids by product.
func startUsbipd(t *testing.T) map[string]string {
	t.Helper()
	busids := make(map[string]string)
	for _, file := range awaitProducts(t, 5) {
		product, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		busid := filepath.Base(filepath.Dir(file))
		busids[strings.TrimSpace(string(product))] = busid
		if out, err := exec.Command("usbip", "bind", "-b", busid).CombinedOutput(); err != nil {
			t.Fatalf("usbip bind: %v\n%s", err, out)
		}
		t.Cleanup(func() { exec.Command("usbip", "unbind", "-b", busid).Run() })
	}
	usbipd := exec.Command("usbipd", "-4")
	stderr, err := usbipd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := usbipd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { usbipd.Process.Kill(); usbipd.Wait() })
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if strings.Contains(lines.Text(), "listening on") {
			return busids
		}
	}
	t.Fatal("usbipd does not listen")
	return nil
}

// awaitProducts returns the product files of that many devices, once the kernel
// has found them.
func awaitProducts(t *testing.T, n int) []string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 16<<10); ; {
		products, err := filepath.Glob("/sys/bus/usb/devices/[0-9]*-*/product")
		if err != nil {
			t.Fatal(err)
		}
		if len(products) == n {
			return products
		}
		if _, _, err := syscall.Recvfrom(fd, buf, 0); err != nil && err != syscall.EINTR {
			t.Fatal(err)
		}
	}
}

// importStock imports and configures a device of that server.
func importStock(t *testing.T, busid string) *usbip.Importer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The server may take a moment to find that the last importer has left.
	for {
		conn, err := usbip.Dial(ctx, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		dev, err := usbip.Import(ctx, conn, busid, nil)
		if errors.Is(err, usbip.OpBusy) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dev.Close() })
		configureStock(t, dev)
		return dev
	}
}

func configureStock(t *testing.T, dev usb.Device) {
	t.Helper()
	value := dev.Descriptors().Configurations()[0].Value
	if _, err := usb.ControlTransfer(t.Context(), dev, usb.SetConfiguration(value), nil); err != nil {
		t.Fatal(err)
	}
}

func TestGuestStockServer(t *testing.T) {
	busids := startUsbipd(t)
	t.Run("list", func(t *testing.T) {
		conn, err := usbip.Dial(t.Context(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		devices, err := usbip.List(t.Context(), conn)
		if err != nil || len(devices) != 5 {
			t.Errorf("listed %+v, %v", devices, err)
		}
	})
	t.Run("unknown busid", func(t *testing.T) {
		conn, err := usbip.Dial(t.Context(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = usbip.RequestImport(t.Context(), conn, "7-7")
		if _, ok := errors.AsType[usbip.OpStatus](err); !ok {
			t.Errorf("error %v", err)
		}
	})
	t.Run("keyboard", func(t *testing.T) { testKeyboard(t, busids["QEMU USB Keyboard"]) })
	t.Run("storage", func(t *testing.T) { testStorage(t, busids["QEMU USB HARDDRIVE"]) })
	t.Run("audio", func(t *testing.T) { testAudio(t, busids["QEMU USB Audio"]) })
	t.Run("serial", func(t *testing.T) { testSerial(t, busids["QEMU USB SERIAL"]) })
	t.Run("card reader", func(t *testing.T) { testCardReader(t, busids["QEMU USB CCID"]) })
}
