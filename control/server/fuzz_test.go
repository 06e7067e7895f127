//go:build linux

package server_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/usbns/usbns/control"
	"github.com/usbns/usbns/control/server"
	"github.com/usbns/usbns/controller"
	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/policy"
	"github.com/usbns/usbns/usb"
)

// FuzzTransfer lets anything be asked of a device, whose client has left: an
// answer is well-formed, and no transfer stays behind.
func FuzzTransfer(f *testing.F) {
	f.Add([]byte(`{"endpoint": 129, "length": 64, "timeout_ms": 1}`))
	f.Add([]byte(`{"setup": "80:06:00:01:00:00:12:00"}`))
	f.Add([]byte(`{"setup": "40 01 0000 0000 0200", "data": "0102"}`))
	f.Add([]byte(`{"endpoint": 1, "data": "ff"}`))
	f.Add([]byte(`{"setup": "0009010000000000"}`))
	table := new(controller.Table)
	defer table.Close()
	dev, err := emulate.NewLoopback(emulate.Options{Speed: usb.SpeedFull})
	if err != nil {
		f.Fatal(err)
	}
	made, err := table.Create(controller.Config{Driver: &controller.User{}, Policy: policy.Open()}, 1)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := made[0].Attach(context.Background(), 0, controller.Plug{Device: dev}); err != nil {
		f.Fatal(err)
	}
	h := (&server.Server{Table: table}).Handler()
	f.Fuzz(func(t *testing.T, body []byte) {
		left, leave := context.WithCancel(t.Context())
		leave()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(left, http.MethodPost, "/v1/controllers/0/ports/0/transfer", bytes.NewReader(body)))
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest || w.Body.Len() > 2*control.MaxTransfer+100 {
			t.Errorf("answer %d of %d bytes", w.Code, w.Body.Len())
		}
		if made[0].Device(0) == nil {
			t.Fatal("the device is gone")
		}
	})
}
