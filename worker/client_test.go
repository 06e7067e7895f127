//go:build linux

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/internal/must"
	"github.com/usbns/usbns/usb"
	"github.com/usbns/usbns/usbip"
)

// A rogue is a worker that somebody else has taken over.
type rogue struct {
	t testing.TB
	*wire
	one sync.Mutex // receives at a time
}

func newRogue(t testing.TB) (*Client, *rogue) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var wires [2]*wire
	for i, fd := range fds {
		if wires[i], err = newWire(os.NewFile(uintptr(fd), "pair")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { wires[i].c.Close() })
	}
	return newClient(wires[0], nil), &rogue{t: t, wire: wires[1]}
}

// answer answers the next request with what f makes of it.
func (r *rogue) answer(f func(m *message)) {
	r.one.Lock()
	defer r.one.Unlock()
	m, file, err := r.receive(true)
	if err != nil {
		return
	}
	if file != nil {
		file.Close()
	}
	f(&m)
	_ = r.send(&m, -1)
}

func (r *rogue) raw(b []byte) {
	if _, err := r.c.Write(b); err != nil {
		r.t.Error(err)
	}
}

// greeted is a client whose rogue has behaved so far.
func greeted(t testing.TB, held ...uint64) (*Client, *rogue) {
	t.Helper()
	c, r := newRogue(t)
	go r.answer(func(m *message) { m.Hello = &hello{Version: version, Nonce: "n", Held: held} })
	if err := c.greet(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	return c, r
}

func waitDead(t *testing.T, c *Client) error {
	t.Helper()
	select {
	case <-c.Dead():
		return c.err
	case <-time.After(time.Minute):
		t.Fatal("the worker is still believed")
		return nil
	}
}

// Whatever nobody asked for is the end of a worker.
func TestRogueMessages(t *testing.T) {
	for name, f := range map[string]func(r *rogue){
		"answer without a request":   func(r *rogue) { _ = r.send(&message{Seq: 99, Op: opServe}, -1) },
		"request":                    func(r *rogue) { _ = r.send(&message{Op: opImport, Device: 1}, -1) },
		"end of an unknown device":   func(r *rogue) { _ = r.send(&message{Op: opEnded, Device: 77}, -1) },
		"end of a device, twice":     func(r *rogue) { ended(r, 5); ended(r, 5) },
		"no JSON":                    func(r *rogue) { r.raw([]byte("{")) },
		"deep JSON":                  func(r *rogue) { r.raw([]byte(strings.Repeat("[", maxMessage-1))) },
		"other JSON":                 func(r *rogue) { r.raw([]byte(`{"seq":"x"}`)) },
		"a byte more than there may": func(r *rogue) { r.raw(make([]byte, maxMessage+1)) },
		"end of the connection":      func(r *rogue) { r.c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c, r := greeted(t, 5)
			d := c.Held()[0]
			f(r)
			if waitDead(t, c) == nil {
				t.Error("nobody knows why it is dead")
			}
			<-d.Ended()
			if _, _, err := c.Import(t.Context(), nil, 1, usb.SpeedHigh, time.Minute); err == nil {
				t.Error("it imports")
			}
		})
	}
}

func ended(r *rogue, device uint64) { _ = r.send(&message{Op: opEnded, Device: device}, -1) }

func TestRogueGreetings(t *testing.T) {
	for name, f := range map[string]func(m *message){
		"another version": func(m *message) { m.Hello = &hello{Version: version + 1} },
		"nothing":         func(*message) {},
		"error":           func(m *message) { m.Error = &failure{Text: "no"} },
		"another request": func(m *message) { m.Seq++ },
	} {
		t.Run(name, func(t *testing.T) {
			c, r := newRogue(t)
			go r.answer(f)
			if c.greet(t.Context(), time.Minute) == nil {
				t.Error("it is believed")
			}
			waitDead(t, c)
		})
	}
	t.Run("silence", func(t *testing.T) {
		c, _ := newRogue(t)
		if err := c.greet(t.Context(), 20*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		waitDead(t, c)
	})
}

// A worker that has no descriptors to tell has been taken over; one whose device
// fails has not.
func TestRogueImports(t *testing.T) {
	c, r := greeted(t)
	go r.answer(func(m *message) {
		m.Error = &failure{Kind: kindProtocol, Text: "bad\x1b[31m\ndevice" + strings.Repeat("x", 2*maxText)}
	})
	_, _, err := c.Import(t.Context(), nil, 1, usb.SpeedHigh, time.Minute)
	if !errors.Is(err, usbip.ErrProtocol) || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > maxText {
		t.Errorf("error %q", err)
	}
	go r.answer(func(*message) {})
	if _, _, err := c.Import(t.Context(), nil, 1, usb.SpeedHigh, time.Minute); err == nil {
		t.Error("a device without descriptors is imported")
	}
	waitDead(t, c)
}

// endsUnseen is a context that has ended when one looks, after the answer.
type endsUnseen struct{ context.Context }

func (endsUnseen) Done() <-chan struct{} { return nil }
func (endsUnseen) Err() error            { return context.Canceled }

// A device that the worker does not have is forgotten, also when nobody waits for
// it any more.
func TestRefusedAsTheContextEnds(t *testing.T) {
	c, r := greeted(t)
	go func() {
		r.answer(func(m *message) { m.Error = &failure{Text: "no"} })
		r.answer(func(*message) {})
	}()
	if _, _, err := c.Import(endsUnseen{t.Context()}, nil, 1, usb.SpeedHigh, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.devices); n != 0 {
		t.Errorf("%d devices are remembered", n)
	}
}

// A worker that says that it lets go of a device, and does not, holds nobody up.
func TestRogueKeepsADevice(t *testing.T) {
	t.Parallel() // it takes answerTimeout
	c, r := greeted(t, 5)
	d := c.Held()[0]
	go r.answer(func(*message) {})
	d.Close()
	must.Await(t, "the end of the device", d.Ended())
	if err := waitDead(t, c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it ended for %v", err)
	}
}

// Descriptors that come with a message are not taken.
func TestRogueDescriptors(t *testing.T) {
	c, r := greeted(t, 5)
	d := c.Held()[0]
	before := len(must.Descriptors(t))
	if err := r.send(&message{Op: opEnded, Device: 5, Error: &failure{Text: "with a gift"}}, 0); err != nil {
		t.Fatal(err)
	}
	<-d.Ended()
	if n := len(must.Descriptors(t)); n != before {
		t.Errorf("%d descriptors are open, %d were", n, before)
	}
	if d.Err() == nil || d.Err().Error() != "with a gift" {
		t.Errorf("it ended for %v", d.Err())
	}
}

// The largest descriptors there can be fit into a message.
func TestMessageHoldsAllDescriptors(t *testing.T) {
	raw := usb.Raw{Device: make([]byte, 18)}
	for range usb.MaxConfigurations {
		raw.Configurations = append(raw.Configurations, make([]byte, (usb.MaxDescriptorBytes-256*255)/usb.MaxConfigurations))
	}
	for i := range 256 {
		raw.Strings = append(raw.Strings, usb.RawString{Index: uint8(i), LangID: 0xffff, Data: make([]byte, 255)})
	}
	b, err := json.Marshal(message{Seq: 1 << 63, Op: opImport, Device: 1 << 63, Raw: &raw})
	if err != nil || len(b) > maxMessage {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// FuzzRogue has a worker send what it likes.
func FuzzRogue(f *testing.F) {
	for _, m := range []message{
		{Op: opEnded, Device: 5},
		{Op: opEnded, Device: 5, Error: &failure{Kind: kindTimeout, Text: "late"}},
		{Seq: 2, Op: opImport, Raw: &usb.Raw{Device: make([]byte, 18)}},
		{Op: opHello, Error: &failure{Text: "no"}},
	} {
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		var m message
		if json.Unmarshal(b, &m) != nil {
			return
		}
		c := &Client{pending: map[uint64]chan message{2: make(chan message, 1)}, devices: make(map[uint64]*Device)}
		c.devices[5] = &Device{c: c, id: 5, ended: make(chan struct{})}
		for range 2 {
			if err := c.take(m); err != nil {
				_ = fmt.Sprint(err)
			}
		}
		if m.Raw != nil {
			_, _ = usb.NewDescriptors(*m.Raw)
		}
	})
}
