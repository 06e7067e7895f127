//go:build linux

package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/control"
)

// results are lines of an attacker that is kept out, but for what change does.
func results(t testing.TB, change func(r *escape.Result)) []byte {
	t.Helper()
	var lines bytes.Buffer
	for _, c := range escape.Cases() {
		for _, own := range []bool{false, true} {
			if own && (!c.Own || c.Harms) {
				continue
			}
			r := escape.Result{Case: c.Name, Own: own, Reached: own, Text: "so"}
			change(&r)
			if r.Case == "" {
				continue
			}
			if err := json.NewEncoder(&lines).Encode(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	return lines.Bytes()
}

func TestJudge(t *testing.T) {
	known := escape.Known{Own: escape.Target{BusID: "1-1", Serial: "A"}, Neighbour: escape.Target{BusID: "1-2", Serial: "B"}}
	for _, tt := range []struct {
		name    string
		change  func(r *escape.Result)
		verdict Verdict // of the case node-open that does not hold
	}{
		{"kept out", func(*escape.Result) {}, ""},
		{"escaped", func(r *escape.Result) { r.Reached = r.Reached || r.Case == "node-open" }, Escaped},
		{"blind", func(r *escape.Result) { r.Reached = r.Reached && r.Case != "node-open" }, Blind},
	} {
		p, err := judge(known, results(t, tt.change))
		if err != nil {
			t.Fatal(err)
		}
		if p.Own != "1-1 (A)" || p.Neighbour != "1-2 (B)" || p.Holds() != (tt.verdict == "") {
			t.Errorf("%s: %s, %s, holds %v", tt.name, p.Own, p.Neighbour, p.Holds())
		}
		for _, a := range p.Attempts {
			want := KeptOut
			if a.Own {
				want = Reached
			}
			if a.Case == "node-open" && tt.verdict != "" && a.Own == (tt.verdict == Blind) {
				want = tt.verdict
			}
			if a.Verdict != want || a.Why == "" || a.Text == "" {
				t.Errorf("%s: %+v, want %s", tt.name, a, want)
			}
		}
	}
}

// What comes from a container may be anything.
func TestJudgeRefuses(t *testing.T) {
	without := func(name string, own bool) []byte {
		return results(t, func(r *escape.Result) {
			if r.Case == name && r.Own == own {
				r.Case = ""
			}
		})
	}
	for want, lines := range map[string][]byte{
		"before it had tried umount":    without("umount", false),
		"before it had tried sysfs-bus": without("sysfs-bus", true),
		"before it had tried ":          nil,
		"invalid character":             []byte("safe\n"),
	} {
		if _, err := judge(escape.Known{}, lines); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	known := escape.Known{Own: escape.Target{BusID: "1-1", Serial: "\x1bc"}}
	p, err := judge(known, results(t, func(r *escape.Result) { r.Text = "a\x1b]0;b\nc" }))
	if err != nil || p.Attempts[0].Text != "a\ufffd]0;b; c" || p.Own != "1-1 (\ufffdc)" {
		t.Errorf("%q of %q, %v", p.Attempts[0].Text, p.Own, err)
	}
}

// A proof has all cases or is none, and steers no terminal.
func FuzzJudge(f *testing.F) {
	f.Add(results(f, func(*escape.Result) {}))
	f.Add([]byte(`{"case": "umount", "own": true, "reached": true, "text": "\u001b[2J"}`))
	f.Fuzz(func(t *testing.T, lines []byte) {
		p, err := judge(escape.Known{}, lines)
		if err != nil {
			return
		}
		if len(p.Attempts) < len(escape.Cases()) {
			t.Errorf("%d attempts", len(p.Attempts))
		}
		for _, a := range p.Attempts {
			if strings.ContainsFunc(a.Text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q", a.Text)
			}
		}
	})
}

func TestStreams(t *testing.T) {
	s, err := newStream(3, func() { t.Error("more than 3") })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.theirs.WriteString("abc"); err != nil {
		t.Fatal(err)
	}
	if got := s.end(); string(got) != "abc" {
		t.Errorf("%q", got)
	}
	tooMuch := make(chan struct{})
	s, err = newStream(3, func() { close(tooMuch) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.theirs.WriteString("abcd"); err != nil {
		t.Fatal(err)
	}
	<-tooMuch
	s.end()
}

func TestNobodyToCompareWith(t *testing.T) {
	own := Container{Ports: []control.Port{{Path: "/x", Serial: "1"}}}
	for _, neighbours := range [][]Neighbour{
		nil,
		{{Ports: []control.Port{{Number: 1}, {Path: "/y"}, {Serial: "user"}}}},
		{{Ports: []control.Port{{Path: "/y", Serial: "0001"}}}}, // it has the own one's in it
	} {
		if _, err := own.known(neighbours); !errors.Is(err, ErrNoNeighbour) {
			t.Errorf("with %+v: %v", neighbours, err)
		}
	}
	if _, err := new(Container).known(nil); err == nil || !strings.Contains(err.Error(), "no device in the kernel") {
		t.Errorf("without an own device: %v", err)
	}
}
