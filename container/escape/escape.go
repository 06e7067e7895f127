//go:build linux

package escape

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

// A Case is one way to reach a device.
type Case struct {
	Name string
	// Why tells what would be lost.
	Why string
	// Own says that the attempt must succeed on the own device, in any
	// container that may use it.
	Own bool
	// Harms says that success detaches the device.
	Harms bool

	// waits says that the attempt waits for something to happen, and gets in
	// nobody's way meanwhile.
	waits bool
	// unshare are the namespaces that the attempt has of its own.
	unshare uintptr
	// try gives evidence that the target was reached, or says what was in the
	// way.
	try func(*attempt) (evidence string, err error)
}

// Cases are all there are, in the order in which they are tried.
func Cases() []Case {
	var all []Case
	for _, some := range [][]Case{sysfsCases, textCases, nodeCases, mountCases, processCases, listenCases, kernelCases, socketCases, controlCases} {
		all = append(all, some...)
	}
	return all
}

// Known is what the attacker knows.
type Known struct {
	Own, Neighbour Target
	// KeepOwn leaves out what would detach the own device.
	KeepOwn bool `json:",omitempty"`
}

func (k *Known) check() error {
	for _, t := range []Target{k.Own, k.Neighbour} {
		if t.Serial == "" || t.BusID == "" || t.Path == "" {
			return errors.New("escape: a device needs a serial number, a bus id and a path to be told from others")
		}
	}
	if strings.Contains(k.Own.Serial, k.Neighbour.Serial) || strings.Contains(k.Neighbour.Serial, k.Own.Serial) {
		return fmt.Errorf("escape: serial numbers %q and %q cannot be told apart", k.Own.Serial, k.Neighbour.Serial)
	}
	return nil
}

// A Result tells how one attempt ended.
type Result struct {
	Case string `json:"case"`
	// Own is set if the target was the own device, and not the neighbour's.
	Own     bool `json:"own"`
	Reached bool `json:"reached"`
	// Text is the evidence, or what was in the way.
	Text string `json:"text"`
}

// An attempt is one case tried on one target.
type attempt struct {
	Known
	own  bool
	root string // of the file system: a test has another
	dir  string // to make things in
}

func (a *attempt) target() *Target {
	if a.own {
		return &a.Own
	}
	return &a.Neighbour
}

const (
	// patience is how long a case may take.
	patience = 30 * time.Second
	// attention is how long a case waits for something to happen.
	attention = 2 * time.Second
)

// Main is the process usbns-escape: without arguments it tries all cases, else
// one of them, for a parent that has put it into namespaces.
func Main() int {
	var known Known
	err := json.NewDecoder(os.Stdin).Decode(&known)
	if err == nil && len(os.Args) == 3 {
		err = child(known, os.Args[1], os.Args[2] == "own", os.Stdout)
	} else if err == nil {
		err = Run(known, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "usbns-escape:", err)
		return 1
	}
	return 0
}

// Run tries every case from this process on the neighbour's device, and on the
// own one those that must succeed there. It writes the results to out, a line of
// JSON each. What harms comes last, and the own device last of all.
func Run(known Known, out io.Writer) error {
	if err := known.check(); err != nil {
		return err
	}
	dir, err := scratch()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lines := json.NewEncoder(out)
	for _, harms := range []bool{false, true} {
		aside, inTurn := known.attempts(harms, dir)
		results := beside(aside)
		for _, a := range inTurn {
			if err := lines.Encode(a.result(a.Case)); err != nil {
				return err
			}
		}
		for range aside {
			if err := lines.Encode(<-results); err != nil {
				return err
			}
		}
	}
	return nil
}

// A plan is an attempt to be made.
type plan struct {
	Case
	*attempt
}

// attempts returns those that get in nobody's way, and the others.
func (k *Known) attempts(harms bool, dir string) (aside, inTurn []plan) {
	for _, own := range []bool{false, true} {
		a := &attempt{Known: *k, own: own, root: "/", dir: dir}
		for _, c := range Cases() {
			switch {
			case c.Harms != harms, own && !c.Own, own && harms && k.KeepOwn:
			case c.waits, c.unshare != 0:
				aside = append(aside, plan{c, a})
			default:
				inTurn = append(inTurn, plan{c, a})
			}
		}
	}
	return aside, inTurn
}

// beside makes attempts beside others: at once those that wait, and a few at a
// time those that work.
func beside(plans []plan) <-chan Result {
	results := make(chan Result, len(plans))
	working := make(chan struct{}, runtime.NumCPU())
	for _, p := range plans {
		go func() {
			if !p.waits {
				working <- struct{}{}
				defer func() { <-working }()
			}
			results <- p.result(p.Case)
		}()
	}
	return results
}

// scratch makes a directory wherever the container lets it.
func scratch() (dir string, err error) {
	for _, parent := range []string{"", "/dev/shm", "/dev", "/run", "/"} {
		if dir, err = os.MkdirTemp(parent, "escape"); err == nil {
			return dir, nil
		}
	}
	return "", err
}

func (a *attempt) result(c Case) Result {
	r := Result{Case: c.Name, Own: a.own}
	if c.unshare != 0 {
		return a.inChild(c, r)
	}
	type outcome struct {
		evidence string
		err      error
	}
	done := make(chan outcome, 1)
	go func() {
		evidence, err := c.try(a)
		done <- outcome{evidence, err}
	}()
	select {
	case o := <-done:
		r.Reached = o.evidence != ""
		r.Text = o.evidence
		if !r.Reached {
			r.Text = refusal(o.err)
		}
	case <-time.After(patience): // its thread hangs in the kernel
		r.Text = fmt.Sprintf("had not ended after %v", patience)
	}
	return r
}

func refusal(err error) string {
	if err == nil {
		return "nothing found"
	}
	return err.Error()
}
