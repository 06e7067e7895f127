package emulatetest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/usbns/usbns/usb"
)

// Device are the tests for every device. They need no endpoint but 0.
var Device = map[string]Test{
	"CancelOfCompletedDoesNothing":      cancelOfCompletedDoesNothing,
	"CancelRacesCompletion":             cancelRacesCompletion,
	"CompletesInOrder":                  completesInOrder,
	"CompletesOnce":                     completesOnce,
	"ConfigurationIsRemembered":         configurationIsRemembered,
	"DescriptorsAreCutToLength":         descriptorsAreCutToLength,
	"DescriptorsMatchControlReads":      descriptorsMatchControlReads,
	"GoneAfterClose":                    goneAfterClose,
	"InvalidControlTransfersAreRefused": invalidControlTransfersAreRefused,
	"ResetUnconfigures":                 resetUnconfigures,
	"ResubmitsInComplete":               resubmitsInComplete,
	"SettingsAreRemembered":             settingsAreRemembered,
	"StringsMatchControlReads":          stringsMatchControlReads,
	"SuperSpeedIsDescribed":             superSpeedIsDescribed,
	"UnknownConfigurationIsStalled":     unknownConfigurationIsStalled,
	"UnsupportedRequestsAreStalled":     unsupportedRequestsAreStalled,
}

var (
	getStatus        = usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetStatus, Length: 2}
	getConfiguration = usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetConfiguration, Length: 1}
)

func cancelOfCompletedDoesNothing(t *testing.T, d usb.Device) {
	f := submit(t, d, controlURB(getStatus))
	if got := f.wait(t); got != usb.StatusOK {
		t.Fatalf("status %v", got)
	}
	d.Cancel(&f.urb)
	controlIn(t, d, getStatus)
	closeAndWait(t, d)
	d.Cancel(&f.urb)
	checkOnce(t, []*flight{f})
}

func cancelRacesCompletion(t *testing.T, d usb.Device) {
	var flights []*flight
	for range 100 {
		f := newFlight(controlURB(getStatus))
		flights = append(flights, f)
		start, cancelled := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(cancelled)
			<-start
			d.Cancel(&f.urb)
		}()
		if err := d.Submit(&f.urb); err != nil {
			t.Fatalf("Submit: %v", err)
		}
		close(start)
		switch got := f.wait(t); {
		case got == usb.StatusOK && f.urb.Actual != 2:
			t.Errorf("succeeded with %d bytes", f.urb.Actual)
		case got != usb.StatusOK && got != usb.StatusCancelled && got != usb.StatusUnlinked:
			t.Errorf("status %v", got)
		}
		<-cancelled
	}
	controlIn(t, d, getStatus)
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func completesInOrder(t *testing.T, d usb.Device) {
	const n = 32
	order := make(chan int, n)
	for i := range n {
		u := controlURB(usb.GetDescriptor(usb.DescDevice, 0, 0, uint16(1+i%18)))
		u.Complete = func(*usb.URB) { order <- i }
		if err := d.Submit(&u); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
	for want := range n {
		got, ok := receive(t, order)
		if !ok {
			t.Fatalf("transfer %d did not complete", want)
		}
		if got != want {
			t.Fatalf("transfer %d completed in place of %d", got, want)
		}
	}
}

func completesOnce(t *testing.T, d usb.Device) {
	var flights []*flight
	for range 100 {
		flights = append(flights, submit(t, d, controlURB(getStatus)))
	}
	for i, f := range flights {
		if got := f.wait(t); got != usb.StatusOK || f.urb.Actual != 2 {
			t.Errorf("transfer %d: status %v, %d bytes", i, got, f.urb.Actual)
		}
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func configurationIsRemembered(t *testing.T, d usb.Device) {
	check := func(want uint8) {
		t.Helper()
		if got := controlIn(t, d, getConfiguration); !bytes.Equal(got, []byte{want}) {
			t.Errorf("GET_CONFIGURATION = %v, want %d", got, want)
		}
	}
	check(0)
	for _, c := range d.Descriptors().Configurations() {
		controlOut(t, d, usb.SetConfiguration(c.Value), nil)
		check(c.Value)
	}
	controlOut(t, d, usb.SetConfiguration(0), nil)
	check(0)
}

func descriptorsAreCutToLength(t *testing.T, d usb.Device) {
	raw := d.Descriptors().Raw()
	for _, c := range []struct {
		kind uint8
		want []byte
	}{
		{usb.DescDevice, raw.Device},
		{usb.DescConfiguration, raw.Configurations[0]},
	} {
		for _, n := range []int{0, 1, 2, 8, 9, len(c.want), len(c.want) + 1, 4096} {
			got := controlIn(t, d, usb.GetDescriptor(c.kind, 0, 0, uint16(n)))
			if want := c.want[:min(n, len(c.want))]; !bytes.Equal(got, want) {
				t.Errorf("%d bytes of descriptor type %d: % x, want % x", n, c.kind, got, want)
			}
		}
	}
	u := controlURB(usb.GetDescriptor(usb.DescDevice, 0, 0, 64))
	u.Flags |= usb.FlagShortNotOK
	if got := submit(t, d, u).wait(t); got != usb.StatusRemoteShort {
		t.Errorf("short transfer that must not be: status %v, want %v", got, usb.StatusRemoteShort)
	}
}

func descriptorsMatchControlReads(t *testing.T, d usb.Device) {
	read, err := usb.ReadDescriptors(bounded(t), d)
	if err != nil {
		t.Fatal(err)
	}
	got, want := read.Raw(), d.Descriptors().Raw()
	if !bytes.Equal(got.Device, want.Device) {
		t.Errorf("device: read % x, told % x", got.Device, want.Device)
	}
	if !bytes.Equal(got.BOS, want.BOS) {
		t.Errorf("BOS: read % x, told % x", got.BOS, want.BOS)
	}
	if len(got.Configurations) != len(want.Configurations) {
		t.Fatalf("%d configurations read, %d told", len(got.Configurations), len(want.Configurations))
	}
	for i := range want.Configurations {
		if !bytes.Equal(got.Configurations[i], want.Configurations[i]) {
			t.Errorf("configuration %d: read % x, told % x", i, got.Configurations[i], want.Configurations[i])
		}
	}
	if read.Product() != d.Descriptors().Product() || read.Serial() != d.Descriptors().Serial() {
		t.Errorf("read %q %q, told %q %q", read.Product(), read.Serial(), d.Descriptors().Product(), d.Descriptors().Serial())
	}
}

func resubmitsInComplete(t *testing.T, d usb.Device) {
	const n = 300
	f := newFlight(controlURB(getStatus))
	left, finish := n, f.urb.Complete
	var failed error
	f.urb.Complete = func(u *usb.URB) {
		left--
		switch {
		case u.Status != usb.StatusOK || u.Actual != 2:
			failed = u.Status.Err()
		case left > 0:
			if failed = d.Submit(u); failed == nil {
				return
			}
		}
		finish(u)
	}
	if err := d.Submit(&f.urb); err != nil {
		t.Fatalf("Submit: %v", err)
	}
	f.wait(t)
	if failed != nil || left != 0 {
		t.Errorf("with %d of %d to go: %v", left, n, failed)
	}
}

func settingsAreRemembered(t *testing.T, d usb.Device) {
	for _, i := range configure(t, d).Interfaces {
		get := usb.Setup{
			RequestType: usb.DirIn | usb.ToInterface, Request: usb.ReqGetInterface,
			Index: uint16(i.Number), Length: 1,
		}
		check := func(want uint8) {
			t.Helper()
			if got := controlIn(t, d, get); !bytes.Equal(got, []byte{want}) {
				t.Errorf("GET_INTERFACE of interface %d = %v, want %d", i.Number, got, want)
			}
		}
		check(0)
		for _, a := range i.Alternates {
			controlOut(t, d, usb.SetInterface(i.Number, a.Setting), nil)
			check(a.Setting)
		}
		controlStall(t, d, usb.SetInterface(i.Number, 200))
		check(i.Alternates[len(i.Alternates)-1].Setting)
	}
	controlStall(t, d, usb.SetInterface(200, 0))
}

func stringsMatchControlReads(t *testing.T, d usb.Device) {
	desc := d.Descriptors()
	for _, index := range []uint8{
		desc.Device().ManufacturerString, desc.Device().ProductString, desc.Device().SerialString,
	} {
		if index == 0 {
			continue
		}
		languages := controlIn(t, d, usb.GetDescriptor(usb.DescString, 0, 0, 255))
		if len(languages) < 4 {
			t.Fatalf("languages: % x", languages)
		}
		first := uint16(languages[2]) | uint16(languages[3])<<8
		got := controlIn(t, d, usb.GetDescriptor(usb.DescString, index, first, 255))
		if want := usb.EncodeString(desc.String(index)); !bytes.Equal(got, want) {
			t.Errorf("string %d: read % x, told % x", index, got, want)
		}
	}
	controlStall(t, d, usb.GetDescriptor(usb.DescString, 250, 0x0409, 255))
}

func unknownConfigurationIsStalled(t *testing.T, d usb.Device) {
	c := configure(t, d)
	controlStall(t, d, usb.SetConfiguration(200))
	if got := controlIn(t, d, getConfiguration); !bytes.Equal(got, []byte{c.Value}) {
		t.Errorf("GET_CONFIGURATION = %v, want %d", got, c.Value)
	}
}

func unsupportedRequestsAreStalled(t *testing.T, d usb.Device) {
	configure(t, d)
	for _, s := range []usb.Setup{
		{RequestType: usb.DirIn | usb.KindVendor | usb.ToOther, Request: 0xfe, Length: 8},
		{RequestType: usb.KindVendor | usb.ToOther, Request: 0xfe},
		{RequestType: usb.DirIn | usb.ToDevice, Request: 0x7e, Length: 8},
		{RequestType: usb.ToDevice, Request: usb.ReqSetFeature, Value: 0x7e},
		usb.GetDescriptor(0x7e, 0, 0, 8),
	} {
		controlStall(t, d, s)
		if got := controlIn(t, d, getStatus); len(got) != 2 {
			t.Errorf("GET_STATUS after a stall: %v", got)
		}
	}
}

func goneAfterClose(t *testing.T, d usb.Device) {
	controlIn(t, d, getStatus)
	select {
	case <-d.Gone():
		t.Fatal("gone before Close")
	default:
	}
	closeAndWait(t, d)
	closeAndWait(t, d)
	f := newFlight(controlURB(getStatus))
	if err := d.Submit(&f.urb); !errors.Is(err, usb.ErrGone) {
		t.Errorf("Submit after Gone: %v, want %v", err, usb.ErrGone)
	}
	if err := d.Reset(bounded(t)); err == nil {
		t.Error("Reset after Gone: no error")
	}
	d.Cancel(&f.urb)
	if n := f.completions.Load(); n != 0 {
		t.Errorf("a refused transfer completed %d times", n)
	}
}

func invalidControlTransfersAreRefused(t *testing.T, d usb.Device) {
	short := controlURB(usb.GetDescriptor(usb.DescDevice, 0, 0, 18))
	short.Buffer = short.Buffer[:17]
	bulk := controlURB(getStatus)
	bulk.Type = usb.Bulk
	for name, u := range map[string]usb.URB{"less buffer than length": short, "another type": bulk} {
		f := newFlight(u)
		if err := d.Submit(&f.urb); !errors.Is(err, usb.ErrInvalid) {
			t.Errorf("%s: %v, want %v", name, err, usb.ErrInvalid)
		}
		defer func() {
			if n := f.completions.Load(); n != 0 {
				t.Errorf("%s: completed %d times", name, n)
			}
		}()
	}
	controlIn(t, d, getStatus)
	closeAndWait(t, d)
}

func resetUnconfigures(t *testing.T, d usb.Device) {
	for range 2 {
		configure(t, d)
		if err := d.Reset(bounded(t)); err != nil {
			t.Fatalf("Reset: %v", err)
		}
		if got := controlIn(t, d, getConfiguration); !bytes.Equal(got, []byte{0}) {
			t.Errorf("GET_CONFIGURATION after Reset = %v, want 0", got)
		}
	}
	descriptorsMatchControlReads(t, d)
}

// superSpeedIsDescribed looks for what a device has to have from super speed on,
// and only then: a BOS, a packet size of endpoint 0 as a power of two, and a
// companion behind each endpoint (USB 3.2, 9.6).
func superSpeedIsDescribed(t *testing.T, d usb.Device) {
	desc := d.Descriptors()
	super := d.Speed().Super()
	if super && (desc.Device().USB < 0x0300 || desc.Device().MaxPacket0 != 9 || desc.Raw().BOS == nil) {
		t.Errorf("USB version %04x, packets of 1<<%d bytes, BOS % x", desc.Device().USB, desc.Device().MaxPacket0, desc.Raw().BOS)
	}
	for i, c := range desc.Raw().Configurations {
		endpoints, companions := 0, 0
		for b := c; len(b) >= 2; b = b[b[0]:] {
			switch b[1] {
			case usb.DescEndpoint:
				endpoints++
			case usb.DescSSEndpointCompanion:
				companions++
			}
		}
		want := 0
		if super {
			want = endpoints
		}
		if companions != want {
			t.Errorf("configuration %d: %d companions of %d endpoints, want %d", i, companions, endpoints, want)
		}
	}
}
