//go:build linux

package escape

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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

// Run tries every case from this process and writes its results to out, a line
// of JSON each. What harms comes last, and the own device last of all.
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
		var started [](<-chan Result)
		for _, own := range []bool{false, true} {
			a := &attempt{Known: known, own: own, root: "/", dir: dir}
			for _, c := range Cases() {
				if c.Harms == harms && c.waits {
					started = append(started, a.start(c))
				}
			}
		}
		for _, own := range []bool{false, true} {
			a := &attempt{Known: known, own: own, root: "/", dir: dir}
			for _, c := range Cases() {
				if c.Harms != harms || c.waits {
					continue
				}
				if err := lines.Encode(a.result(c)); err != nil {
					return err
				}
			}
		}
		for _, result := range started {
			if err := lines.Encode(<-result); err != nil {
				return err
			}
		}
	}
	return nil
}

// start tries a case beside others.
func (a *attempt) start(c Case) <-chan Result {
	done := make(chan Result, 1)
	go func() { done <- a.result(c) }()
	return done
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
