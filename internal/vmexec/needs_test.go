package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadNeeds(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a_test.go": `//go:build guest

//vmexec:modules vhci-hcd usbip-host
//vmexec:memory 1G

package p

func TestA(t *testing.T) {}

func (x T) TestMethod() {}
`,
		"b_test.go": `// Package p has a comment: //vmexec:modules no
package p

//vmexec:modules fuse
//vmexec:qemu -device usb-kbd
//vmexec:env ONE TWO
//vmexec:tree runtimes
//vmexec:file ../x /abs/y:/usr/bin/y
var s = "//vmexec:modules no"

func TestB(t *testing.T) {}
`,
		"c.go": "package p\n\n//vmexec:modules no\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readNeeds(dir)
	if err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(filepath.Dir(dir), "x")
	want := needs{
		sources: []string{filepath.Join(dir, "a_test.go"), filepath.Join(dir, "b_test.go")},
		tests:   []string{"TestA", "TestB"},
		modules: []string{"vhci-hcd", "usbip-host", "fuse"},
		files:   []carried{{beside, beside}, {"/abs/y", "/usr/bin/y"}},
		trees:   []string{"runtimes"},
		env:     []string{"ONE", "TWO"},
		qemu:    []string{"-device", "usb-kbd"},
		memory:  "1G",
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(needs{}, carried{})); diff != "" {
		t.Error(diff)
	}
}

func TestBadDirectives(t *testing.T) {
	for _, tt := range []struct{ directive, want string }{
		{"//vmexec:module fuse", "p_test.go:1:1: //vmexec:module is none of modules, env, file, memory, qemu, tree"},
		{"//vmexec:modules", "p_test.go:1:1: //vmexec:modules without arguments"},
		{"//vmexec:", "p_test.go:1:1: //vmexec: without arguments"},
		{"//vmexec:memory 1G 2G", "p_test.go:1:1: //vmexec:memory takes one size"},
		{"//vmexec:file x:relative", `p_test.go:1:1: "relative" is no absolute path`},
	} {
		_, err := readNeeds(writeTest(t, tt.directive))
		if err == nil || !strings.HasSuffix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %s", tt.directive, err, tt.want)
		}
	}
}

func TestNothingToRun(t *testing.T) {
	n := needs{sources: []string{"p_test.go"}, tests: []string{"TestGuestA", "ExampleB"}}
	for _, tt := range []struct {
		args string
		want bool
	}{
		{"", false},
		{"-test.run=^TestGuest", false},
		{"-test.run=^TestGuestA$/^sub$", false},
		{"-test.run=B", false},
		{"-test.run=^TestC", true},
		{"-test.run=^TestC/TestGuestA", true},
		{"-test.run=^TestC|^TestGuest", false},
		{"-test.run=^$ -test.bench=.", false},
		{"-test.run=^$ -test.fuzz=Fuzz", false},
		{"-test.list=.", false},
		{"-test.run=(", false},
	} {
		if got := n.nothingToRun(parseTestFlags(strings.Fields(tt.args))); got != tt.want {
			t.Errorf("%q: %v, want %v", tt.args, got, tt.want)
		}
	}
	if (&needs{}).nothingToRun(parseTestFlags([]string{"-test.run=x"})) {
		t.Error("a binary without its sources was not run")
	}
}

func TestNothingToRunBootsNothing(t *testing.T) {
	var out strings.Builder
	h := host{kernel: "none", dir: writeTest(t, "//vmexec:modules nonesuch"), stdout: &out}
	if err := h.run(t.Context(), "none", []string{"-test.run=^TestGuest"}); err != nil {
		t.Error(err)
	}
	if want := "testing: warning: no tests to run\nPASS\n"; out.String() != want {
		t.Errorf("output %q, want %q", out.String(), want)
	}
}

func TestResultsOfFlags(t *testing.T) {
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"-test.v=true -test.run=x", nil},
		{"-test.coverprofile=c.out -test.cpuprofile=/abs/cpu", []string{"/pkg/c.out", "/abs/cpu"}},
		{"-test.outputdir=/out -test.trace=t -test.testlogfile=l", []string{"/out/t", "/pkg/l"}},
		{"-test.gocoverdir=/cover", []string{"/cover"}},
		{"-test.v -- -test.trace=t", nil},
	} {
		got := parseTestFlags(strings.Fields(tt.args)).results("/pkg")
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.args, diff)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("GODEBUG", "x=1")
	t.Setenv("NAMED", "")
	t.Setenv("OTHER", "secret")
	got := fmt.Sprint(environment([]string{"NAMED", "NOT_SET"}))
	for _, want := range []string{"GODEBUG=x=1", "NAMED=", "PATH="} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	for _, unwanted := range []string{"OTHER", "NOT_SET"} {
		if strings.Contains(got, unwanted) {
			t.Errorf("%s is in %s", unwanted, got)
		}
	}
}
