//go:build guest

//vmexec:modules cdc-acm

package emulate_test

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

// A tty echoes a million bytes, and a line arrives there.
func TestGuestSerial(t *testing.T) {
	for _, speed := range []usb.Speed{usb.SpeedFull, usb.SpeedHigh, usb.SpeedSuper} {
		t.Run(speed.String(), func(t *testing.T) {
			g := attach(t, "serial", emulate.Options{Speed: speed})
			tty := openTTY(t, g.waitNode(t, "*:*/tty/ttyACM*", "/dev"))
			data := make([]byte, 1_000_000)
			rand.NewChaCha8([32]byte{3}).Read(data)
			sent := make(chan error, 1)
			go func() {
				_, err := tty.Write(data)
				sent <- err
			}()
			got := make([]byte, len(data))
			if _, err := io.ReadFull(tty, got); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got, data) {
				t.Error("a million bytes came back changed")
			}

			told := make(chan error, 1)
			go func() { told <- g.Device.(emulate.Teller).Tell(t.Context(), "+GREETING") }()
			if line, err := bufio.NewReader(tty).ReadString('\n'); line != "+GREETING\r\n" {
				t.Errorf("line %q, %v", line, err)
			}
			if err := <-told; err != nil {
				t.Error(err)
			}
			if bits, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCMGET); err != nil || bits&unix.TIOCM_CD == 0 {
				t.Errorf("modem lines %x, %v: no carrier", bits, err)
			}
		})
	}
}

// openTTY opens a terminal raw: every byte passes as it is.
func openTTY(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fd := int(f.Fd())
	raw, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	raw.Iflag, raw.Oflag, raw.Lflag = 0, 0, 0
	raw.Cflag |= unix.CREAD | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, raw); err != nil {
		t.Fatal(err)
	}
	return f
}
