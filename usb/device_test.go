package usb

import (
	"context"
	"errors"
	"testing"
)

func TestDoReturnsTheOutcome(t *testing.T) {
	for _, status := range []Status{StatusOK, StatusStall, 99} {
		d := &fakeDevice{answer: func(Setup) ([]byte, Status) { return []byte{1, 2}, status }}
		n, err := ControlTransfer(t.Context(), d, GetDescriptor(DescDevice, 0, 0, 8), make([]byte, 8))
		if n != 2 || !errors.Is(err, status.Err()) {
			t.Errorf("%v: got %d bytes, error %v", status, n, err)
		}
	}
}

type refusing struct{ Submitter }

func (refusing) Submit(*URB) error { return ErrTooMany }

func TestDoReturnsARefusal(t *testing.T) {
	if err := Do(t.Context(), refusing{}, &URB{}); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
}

func TestDoCancelsWhenTheContextEnds(t *testing.T) {
	cause := errors.New("enough")
	for _, tt := range []struct {
		name    string
		outcome Status
		want    error
	}{
		{"cancelled in time", StatusUnlinked, cause},
		{"already succeeded", StatusOK, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			d := &fakeDevice{cancelled: tt.outcome, answer: func(Setup) ([]byte, Status) {
				cancel(cause)
				return nil, silent
			}}
			u := URB{Type: Control}
			if err := Do(ctx, d, &u); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if u.Status != tt.outcome {
				t.Errorf("the URB says %v, want %v", u.Status, tt.outcome)
			}
		})
	}
}

func TestURBIn(t *testing.T) {
	for _, tt := range []struct {
		name string
		urb  URB
		want bool
	}{
		{"control by its setup packet", URB{Type: Control, Setup: GetDescriptor(1, 0, 0, 18)}, true},
		{"control, whatever the address", URB{Type: Control, Endpoint: DirIn, Setup: SetConfiguration(1)}, false},
		{"bulk IN", URB{Type: Bulk, Endpoint: 0x81}, true},
		{"bulk OUT", URB{Type: Bulk, Endpoint: 0x01}, false},
	} {
		if got := tt.urb.In(); got != tt.want {
			t.Errorf("%s: got %t", tt.name, got)
		}
	}
}
