package emulatetest

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/usbns/usbns/usb"
)

// Endpoints are the tests for devices that have a bulk or interrupt IN endpoint
// on which they say nothing at first.
var Endpoints = map[string]Test{
	"CancelCompletesQueuedIn":        cancelCompletesQueuedIn,
	"CancelInComplete":               cancelInComplete,
	"CancelRacesReset":               cancelRacesReset,
	"CancelTwice":                    cancelTwice,
	"CloseCompletesInFlight":         closeCompletesInFlight,
	"HaltStallsUntilCleared":         haltStallsUntilCleared,
	"InvalidTransfersAreRefused":     invalidTransfersAreRefused,
	"ResetCompletesInFlight":         resetCompletesInFlight,
	"UnconfiguredHasEndpointZero":    unconfiguredHasEndpointZero,
	"UnconfiguringEndsTransfers":     unconfiguringEndsTransfers,
	"UnlinkedEndpointWorksAfterward": unlinkedEndpointWorksAfterward,
	"UsableAgainAfterReset":          usableAgainAfterReset,
}

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

// cancelInComplete cancels each transfer from the Complete of the one before.
func cancelInComplete(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	flights := make([]*flight, 4)
	for i := range flights {
		flights[i] = newFlight(inURB(e))
		if finish := flights[i].urb.Complete; i+1 < len(flights) {
			flights[i].urb.Complete = func(u *usb.URB) {
				d.Cancel(&flights[i+1].urb)
				finish(u)
			}
		}
	}
	for _, f := range flights {
		if err := d.Submit(&f.urb); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
	d.Cancel(&flights[0].urb)
	for i, f := range flights {
		if got := f.wait(t); got != usb.StatusCancelled && got != usb.StatusUnlinked {
			t.Errorf("transfer %d: status %v, want %v", i, got, usb.StatusCancelled)
		}
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func cancelTwice(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	var flights []*flight
	for range 10 {
		f := submit(t, d, inURB(e))
		flights = append(flights, f)
		var cancels sync.WaitGroup
		for range 2 {
			cancels.Go(func() { d.Cancel(&f.urb) })
		}
		cancels.Wait()
		if got := f.wait(t); got != usb.StatusCancelled && got != usb.StatusUnlinked {
			t.Errorf("status %v, want %v", got, usb.StatusCancelled)
		}
		d.Cancel(&f.urb)
	}
	controlIn(t, d, getStatus)
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func cancelRacesReset(t *testing.T, d usb.Device) {
	var flights []*flight
	for range 3 {
		e := idleIn(t, d)
		var cancels sync.WaitGroup
		for range 8 {
			f := submit(t, d, inURB(e))
			flights = append(flights, f)
			cancels.Go(func() { d.Cancel(&f.urb) })
		}
		if err := d.Reset(bounded(t)); err != nil {
			t.Fatalf("Reset: %v", err)
		}
		cancels.Wait()
	}
	controlIn(t, d, getStatus)
	closeAndWait(t, d)
	checkOnce(t, flights)
}

// unconfiguringEndsTransfers takes the endpoints from under transfers.
func unconfiguringEndsTransfers(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	flights := []*flight{submit(t, d, inURB(e)), submit(t, d, inURB(e))}
	controlOut(t, d, usb.SetConfiguration(0), nil)
	for i, f := range flights {
		if got := f.wait(t); got == usb.StatusOK {
			t.Errorf("transfer %d succeeded", i)
		}
	}
	idleIn(t, d)
	closeAndWait(t, d)
	checkOnce(t, flights)
}

func closeCompletesInFlight(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	var flights []*flight
	for range 4 {
		flights = append(flights, submit(t, d, inURB(e)))
	}
	closeAndWait(t, d)
	checkOnce(t, flights)
	for i, f := range flights {
		if f.urb.Status == usb.StatusOK {
			t.Errorf("transfer %d succeeded", i)
		}
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
	for name, c := range map[string]struct {
		urb  usb.URB
		want error
	}{
		"endpoint nobody has":             {inURB(usb.Endpoint{Address: unusedEndpoint(d), Type: usb.Bulk}), usb.ErrNoEndpoint},
		"isochronous on another endpoint": {wrongType, usb.ErrInvalid},
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

func unconfiguredHasEndpointZero(t *testing.T, d usb.Device) {
	e := idleIn(t, d)
	controlOut(t, d, usb.SetConfiguration(0), nil)
	f := newFlight(inURB(e))
	if err := d.Submit(&f.urb); !errors.Is(err, usb.ErrNoEndpoint) {
		t.Errorf("Submit to %v of an unconfigured device: %v, want %v", e.Address, err, usb.ErrNoEndpoint)
	}
	controlIn(t, d, getStatus)
}

func usableAgainAfterReset(t *testing.T, d usb.Device) {
	for range 2 {
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
