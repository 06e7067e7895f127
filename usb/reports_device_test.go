package usb_test

import (
	"testing"

	"github.com/usbns/usbns/emulate"
	"github.com/usbns/usbns/usb"
)

func TestReadReports(t *testing.T) {
	for kind, want := range map[string]int{"scanner": 1, "signpad": 1, "fingerprint": 0, "disk": 0} {
		t.Run(kind, func(t *testing.T) {
			dev, err := emulate.Open(kind, emulate.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			d, err := usb.ReadReports(t.Context(), dev, dev.Descriptors())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(d.Raw().Reports); n != want {
				t.Fatalf("%d reports, want %d", n, want)
			}
			if want == 0 {
				return
			}
			ask := usb.Setup{RequestType: 0x81, Request: usb.ReqGetDescriptor, Value: 0x2200, Length: 0xffff}
			if b, ok := d.Answer(ask); !ok || string(b) != string(d.Report(0)) {
				t.Errorf("answers % x, %v to the request for its report descriptor", b, ok)
			}
			ask.Index = 1
			if b, ok := d.Answer(ask); ok {
				t.Errorf("answers % x for an interface it does not have", b)
			}
			raw := d.Raw()
			raw.Reports = append(raw.Reports, raw.Reports[0])
			if _, err := usb.NewDescriptors(raw); err == nil {
				t.Error("two report descriptors of one interface are accepted")
			}
			raw.Reports = []usb.RawReport{{Interface: 0, Data: d.Report(0)[1:]}}
			if _, err := usb.NewDescriptors(raw); err == nil {
				t.Error("a report descriptor of another length is accepted")
			}
		})
	}
}
