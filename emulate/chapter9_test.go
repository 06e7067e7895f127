package emulate

import (
	"errors"
	"slices"
	"testing"

	"github.com/usbns/usbns/usb"
)

func TestSetInterfaceEndsItsOwnTransfersOnly(t *testing.T) {
	d := newDevice(t, never)
	var order []string
	start := func(name string, u *usb.URB) {
		u.Complete = func(*usb.URB) { order = append(order, name) }
		if err := d.Submit(u); err != nil {
			t.Fatal(err)
		}
	}
	start("own", bulkIn())
	start("other", &usb.URB{Endpoint: 0x82, Type: usb.Interrupt, Buffer: make([]byte, 8)})
	start("request", &usb.URB{Setup: usb.SetInterface(0, 0)})
	if want := []string{"own", "request"}; !slices.Equal(order, want) {
		t.Errorf("completed %q, want %q", order, want)
	}
	if err := d.Submit(bulkIn()); !errors.Is(err, usb.ErrNoEndpoint) {
		t.Errorf("Submit to an endpoint of another setting: %v", err)
	}
}

// Requests that name something else than they should are refused, and endpoint 0
// works on whatever happens.
func TestStandardRequestsAreStrict(t *testing.T) {
	d := newDevice(t, never)
	for name, s := range map[string]usb.Setup{
		"interface 0x100":           {RequestType: usb.DirIn | usb.ToInterface, Request: usb.ReqGetInterface, Index: 0x100, Length: 1},
		"status of interface 0x100": {RequestType: usb.DirIn | usb.ToInterface, Request: usb.ReqGetStatus, Index: 0x100, Length: 2},
		"status of endpoint 0x181":  {RequestType: usb.DirIn | usb.ToEndpoint, Request: usb.ReqGetStatus, Index: 0x181, Length: 2},
		"status of no one":          {RequestType: usb.DirIn | usb.ToOther, Request: usb.ReqGetStatus, Length: 2},
		"halt of endpoint 5":        {RequestType: usb.ToEndpoint, Request: usb.ReqSetFeature, Index: 5},
		"halt of isochronous":       {RequestType: usb.ToEndpoint, Request: usb.ReqSetFeature, Index: 0x83},
		"feature 1 of an endpoint":  {RequestType: usb.ToEndpoint, Request: usb.ReqSetFeature, Value: 1, Index: 0x81},
		"configuration 0x101":       {Request: usb.ReqSetConfiguration, Value: 0x101},
		"setting 0x101":             {RequestType: usb.ToInterface, Request: usb.ReqSetInterface, Value: 0x101},
		"interface to a device":     {RequestType: usb.DirIn, Request: usb.ReqGetInterface, Length: 1},
		"configuration, OUT":        {Request: usb.ReqGetConfiguration},
		"address":                   {Request: usb.ReqSetAddress, Value: 5},
		"U1 at high speed":          {Request: usb.ReqSetFeature, Value: featureU1Enable},
		"SEL at high speed":         {Request: usb.ReqSetSEL, Length: 6},
	} {
		if _, err := usb.ControlTransfer(t.Context(), d, s, make([]byte, s.Length)); !errors.Is(err, usb.StatusStall.Err()) {
			t.Errorf("%s: %v, want a stall", name, err)
		}
	}
	d.Halt(0)
	mustControl(t, d, usb.Setup{RequestType: usb.ToEndpoint, Request: usb.ReqSetFeature}, nil)
	mustControl(t, d, usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetStatus, Length: 2}, make([]byte, 2))
}

// What is about a link's power at super speed is taken and ignored.
func TestSuperSpeedRequests(t *testing.T) {
	l, err := NewLoopback(Options{Speed: usb.SpeedSuper})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, s := range []usb.Setup{
		{Request: usb.ReqSetSEL, Length: 6},
		{Request: usb.ReqSetIsochDelay, Value: 40},
		usb.SetConfiguration(1),
		{Request: usb.ReqSetFeature, Value: featureU1Enable},
		{Request: usb.ReqClearFeature, Value: featureU2Enable},
		{RequestType: usb.ToInterface, Request: usb.ReqSetFeature, Value: featureFunctionSuspend},
	} {
		mustControl(t, l, s, make([]byte, s.Length))
	}
}

func TestRemoteWakeupIsRemembered(t *testing.T) {
	d := newDevice(t, never)
	status := func() byte {
		return mustControl(t, d, usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetStatus, Length: 2}, make([]byte, 2))[0]
	}
	if got := status(); got != 1 {
		t.Errorf("status %d, want self-powered", got)
	}
	mustControl(t, d, usb.Setup{Request: usb.ReqSetFeature, Value: usb.FeatureDeviceRemoteWakeup}, nil)
	if got := status(); got != 3 {
		t.Errorf("status %d, want self-powered and remote wake-up", got)
	}
	if err := d.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := status(); got != 0 {
		t.Errorf("status %d after a reset, want 0", got)
	}
}
