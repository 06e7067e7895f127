package emulatetest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/usbns/usbns/usb"
)

// Device are the tests for every device.
var Device = map[string]Test{
	"CancelCompletesQueuedIn":        cancelCompletesQueuedIn,
	"CancelOfCompletedDoesNothing":   cancelOfCompletedDoesNothing,
	"CancelRacesCompletion":          cancelRacesCompletion,
	"CloseCompletesInFlight":         closeCompletesInFlight,
	"CompletesInOrder":               completesInOrder,
	"CompletesOnce":                  completesOnce,
	"ConfigurationIsRemembered":      configurationIsRemembered,
	"DescriptorsAreCutToLength":      descriptorsAreCutToLength,
	"DescriptorsMatchControlReads":   descriptorsMatchControlReads,
	"HaltStallsUntilCleared":         haltStallsUntilCleared,
	"InvalidTransfersAreRefused":     invalidTransfersAreRefused,
	"ResetCompletesInFlight":         resetCompletesInFlight,
	"ResubmitsInComplete":            resubmitsInComplete,
	"SettingsAreRemembered":          settingsAreRemembered,
	"StringsMatchControlReads":       stringsMatchControlReads,
	"UnconfiguredHasEndpointZero":    unconfiguredHasEndpointZero,
	"UnknownConfigurationIsStalled":  unknownConfigurationIsStalled,
	"UnsupportedRequestsAreStalled":  unsupportedRequestsAreStalled,
	"UsableAgainAfterReset":          usableAgainAfterReset,
	"UnlinkedEndpointWorksAfterward": unlinkedEndpointWorksAfterward,
}

var (
	getStatus        = usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetStatus, Length: 2}
	getConfiguration = usb.Setup{RequestType: usb.DirIn, Request: usb.ReqGetConfiguration, Length: 1}
)

func cancelCompletesQueuedIn(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	var flights []*flight
	for range 3 {
		flights = append(flights, submit(t, d, inURB(e)))
	}
	for _, i := range []int{1, 0, 2} {
		d.Cancel(&flights[i].urb)
		if got := flights[i].wait(t); got != usb.StatusCancelled && got != usb.StatusUnlinked {
			t.Errorf("transfer %d: status %v, want %v", i, got, usb.StatusCancelled)
		}
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
}

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
	for range 200 {
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

func closeCompletesInFlight(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	var flights []*flight
	for range 4 {
		flights = append(flights, submit(t, d, inURB(e)))
	}
	select {
	case <-d.Gone():
		t.Fatal("gone before Close")
	default:
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
	for i, f := range flights {
		if f.urb.Status == usb.StatusOK {
			t.Errorf("transfer %d succeeded", i)
		}
	}
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

func haltStallsUntilCleared(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	status := usb.Setup{
		RequestType: usb.DirIn | usb.ToEndpoint, Request: usb.ReqGetStatus,
		Index: uint16(e.Address), Length: 2,
	}
	check := func(want byte) {
		t.Helper()
		if got := controlIn(t, d, status); !bytes.Equal(got, []byte{want, 0}) {
			t.Errorf("GET_STATUS of %v = %v, want %d", e.Address, got, want)
		}
	}
	check(0)
	controlOut(t, d, usb.Setup{
		RequestType: usb.ToEndpoint, Request: usb.ReqSetFeature,
		Value: usb.FeatureEndpointHalt, Index: uint16(e.Address),
	}, nil)
	check(1)
	for range 2 {
		if got := submit(t, d, inURB(e)).wait(t); got != usb.StatusStall {
			t.Errorf("transfer on a halted endpoint: status %v, want %v", got, usb.StatusStall)
		}
	}
	controlOut(t, d, usb.ClearHalt(e.Address), nil)
	check(0)
	f := submit(t, d, inURB(e))
	d.Cancel(&f.urb)
	if got := f.wait(t); got == usb.StatusStall {
		t.Errorf("transfer after CLEAR_FEATURE: status %v", got)
	}
}

func invalidTransfersAreRefused(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	wrongType := inURB(e)
	wrongType.Type = usb.Isochronous
	wrongType.Packets = []usb.IsoPacket{{Length: 1}}
	short := controlURB(usb.GetDescriptor(usb.DescDevice, 0, 0, 18))
	short.Buffer = short.Buffer[:17]
	for name, c := range map[string]struct {
		urb  usb.URB
		want error
	}{
		"endpoint nobody has":                  {inURB(usb.Endpoint{Address: unusedEndpoint(d), Type: usb.Bulk}), usb.ErrNoEndpoint},
		"isochronous on another endpoint":      {wrongType, usb.ErrInvalid},
		"control with less buffer than length": {short, usb.ErrInvalid},
	} {
		f := newFlight(c.urb)
		if err := d.Submit(&f.urb); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
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

// unusedEndpoint returns the address of an endpoint that no setting has.
func unusedEndpoint(d usb.Device) usb.Address {
	var used [16]bool
	for _, c := range d.Descriptors().Configurations() {
		for _, i := range c.Interfaces {
			for _, a := range i.Alternates {
				for _, e := range a.Endpoints {
					used[e.Address.Number()] = true
				}
			}
		}
	}
	for n := 15; n > 0; n-- {
		if !used[n] {
			return usb.Address(n) | usb.DirIn
		}
	}
	panic("a device that uses all endpoints")
}

func resetCompletesInFlight(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	var flights []*flight
	for range 4 {
		flights = append(flights, submit(t, d, inURB(e)))
	}
	if err := d.Reset(bounded(t)); err != nil {
		t.Fatalf("Reset: %v", err)
	}
	for i, f := range flights {
		if !f.isDone() {
			t.Errorf("transfer %d is in flight after Reset", i)
		}
	}
	if got := controlIn(t, d, getConfiguration); !bytes.Equal(got, []byte{0}) {
		t.Errorf("GET_CONFIGURATION after Reset = %v, want 0", got)
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func resubmitsInComplete(t *testing.T, d usb.Device) {
	const n = 5000
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

func unconfiguredHasEndpointZero(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	controlOut(t, d, usb.SetConfiguration(0), nil)
	f := newFlight(inURB(e))
	if err := d.Submit(&f.urb); !errors.Is(err, usb.ErrNoEndpoint) {
		t.Errorf("Submit to %v of an unconfigured device: %v, want %v", e.Address, err, usb.ErrNoEndpoint)
	}
	controlIn(t, d, getStatus)
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

func usableAgainAfterReset(t *testing.T, d usb.Device) {
	for range 3 {
		e := idleIn(t, d)
		f := submit(t, d, inURB(e))
		if err := d.Reset(bounded(t)); err != nil {
			t.Fatalf("Reset: %v", err)
		}
		f.wait(t)
	}
	descriptorsMatchControlReads(t, d)
}

func unlinkedEndpointWorksAfterward(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	for range 3 {
		f := submit(t, d, inURB(e))
		d.Cancel(&f.urb)
		f.wait(t)
	}
	f := submit(t, d, inURB(e))
	controlIn(t, d, getStatus)
	if f.isDone() {
		t.Errorf("a transfer with nothing to receive completed with status %v", f.urb.Status)
	}
}
