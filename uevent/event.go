package uevent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxMessage bounds a message: the kernel has 2048 bytes of properties at most,
// and a path before them (UEVENT_BUFFER_SIZE in include/linux/kobject.h).
const maxMessage = 8192

// maxProperties is four times what the kernel has room for (UEVENT_NUM_ENVP).
const maxProperties = 256

// An Event is what happened to a device.
type Event struct {
	Action  string            // "add", "remove", "change", "bind", "unbind", ...
	DevPath string            // the device's directory below /sys, "/devices/..."
	Env     map[string]string // what else is told: SUBSYSTEM, MAJOR, DEVNAME, ...
}

var errMalformed = errors.New("malformed event")

// Parse reads a message of the kernel: "ACTION@DEVPATH", and "KEY=VALUE" for each
// property, each with a NUL at its end.
func Parse(message []byte) (Event, error) {
	if len(message) > maxMessage {
		return Event{}, fmt.Errorf("%w: %d bytes", errMalformed, len(message))
	}
	body, ok := bytes.CutSuffix(message, []byte{0})
	if !ok {
		return Event{}, fmt.Errorf("%w: it has no end", errMalformed)
	}
	if n := bytes.Count(body, []byte{0}); n > maxProperties {
		return Event{}, fmt.Errorf("%w: %d properties", errMalformed, n)
	}
	head, properties, _ := strings.Cut(string(body), "\x00")
	var e Event
	if e.Action, e.DevPath, ok = strings.Cut(head, "@"); !ok {
		return Event{}, fmt.Errorf("%w: it begins with %.40q", errMalformed, head)
	}
	e.Env = make(map[string]string)
	for property := range strings.SplitSeq(properties, "\x00") {
		if property == "" {
			continue
		}
		key, value, ok := strings.Cut(property, "=")
		if !ok || key == "" {
			return Event{}, fmt.Errorf("%w: property %.40q", errMalformed, property)
		}
		e.Env[key] = value
	}
	for key, want := range map[string]string{"ACTION": e.Action, "DEVPATH": e.DevPath} {
		if got, ok := e.Env[key]; ok && got != want {
			return Event{}, fmt.Errorf("%w: %s is %.40q and %.40q", errMalformed, key, want, got)
		}
		delete(e.Env, key)
	}
	return e, e.check()
}

// check tells whether a message can be made of e.
func (e Event) check() error {
	bad := func(s string) bool { return strings.ContainsRune(s, 0) }
	switch {
	case e.Action == "" || bad(e.Action) || strings.Contains(e.Action, "@"):
		return fmt.Errorf("%w: action %.40q", errMalformed, e.Action)
	case !strings.HasPrefix(e.DevPath, "/") || bad(e.DevPath):
		return fmt.Errorf("%w: path %.40q", errMalformed, e.DevPath)
	}
	for key, value := range e.Env {
		if key == "" || strings.Contains(key, "=") || bad(key) || bad(value) {
			return fmt.Errorf("%w: property %.40q", errMalformed, key+"="+value)
		}
	}
	return nil
}

// appendKernel appends the message that Parse reads. A SEQNUM is left out: the
// kernel numbers what it tells.
func appendKernel(dst []byte, e Event) []byte {
	dst = append(dst, e.Action+"@"+e.DevPath+"\x00"...)
	return appendProperties(dst, e)
}

func appendProperties(dst []byte, e Event) []byte {
	dst = append(dst, "ACTION="+e.Action+"\x00DEVPATH="+e.DevPath+"\x00"...)
	for _, key := range slices.Sorted(maps.Keys(e.Env)) {
		if key != "SEQNUM" {
			dst = append(dst, key+"="+e.Env[key]+"\x00"...)
		}
	}
	return dst
}
