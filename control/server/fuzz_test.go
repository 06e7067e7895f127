//go:build linux

package server_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
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

// FuzzOnly lets a container ask anything: it neither reaches its neighbour nor
// hears of her.
func FuzzOnly(f *testing.F) {
	f.Add("GET", "/v1/controllers", []byte(nil))
	f.Add("DELETE", "/v1/controllers/1/ports/0", []byte(nil))
	f.Add("DELETE", "/v1/controllers/0/../1", []byte(nil))
	f.Add("POST", "/v1/controllers", []byte(`{"driver": "user"}`))
	f.Add("PUT", "/v1/controllers/neighbour/container", []byte(`{"PID": 1}`))
	f.Add("POST", "/v1/controllers/0/ports/0/transfer", []byte(`{"setup": "8006000100001200"}`))
	table := new(controller.Table)
	defer table.Close()
	driver := &controller.User{}
	for _, name := range []string{"own", "neighbour"} {
		if _, err := table.Create(controller.Config{Name: name, Driver: driver, Policy: policy.Open()}, 1); err != nil {
			f.Fatal(err)
		}
	}
	dev, err := emulate.NewLoopback(emulate.Options{Speed: usb.SpeedFull})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := table.ByName("neighbour").Attach(context.Background(), 0, controller.Plug{Device: dev}); err != nil {
		f.Fatal(err)
	}
	s := &server.Server{Table: table, Drivers: map[string]server.Driver{"user": {Driver: driver}}}
	h := s.Only(table.ByName("own")).Handler()
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", bytes.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code < http.StatusBadRequest && strings.Contains(w.Body.String(), "loopback") {
			t.Errorf("%s %q tells of the neighbour: %s", method, path, w.Body)
		}
		if len(table.All()) != 2 || table.ByName("neighbour").Device(0) == nil {
			t.Fatalf("%s %q has harmed the neighbour", method, path)
		}
	})
}
