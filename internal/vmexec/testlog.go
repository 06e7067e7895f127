package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// go test caches a result together with the log a test binary writes of the
// files and variables it looked at. It does not ask for the log of a test that
// -exec runs, yet uses it if it finds it where it would have asked for it:
// testlog.txt beside the binary, which stands in a directory of go test's own.
// See runTestActor and saveOutput in cmd/go/internal/test.

// testLog gives the name of that file, or nothing if go test is not the caller.
func testLog(binary string, flags testFlags) string {
	const always = "test.paniconexit0" // in a command line of go test
	if _, ok := flags[always]; !ok || flags["test.testlogfile"] != "" {
		return ""
	}
	log, err := filepath.Abs(filepath.Join(filepath.Dir(binary), "testlog.txt"))
	if err != nil {
		return ""
	}
	return log
}

// addToTestLog adds what a result depends on besides: the directives, what they
// carry into the guest, and vmexec itself. go test heeds what is in the module.
func (n *needs) addToTestLog(log, self string) error {
	text, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	b := bytes.NewBuffer(text)
	for _, file := range append(n.sources, self) {
		fmt.Fprintf(b, "open %s\n", file)
	}
	for _, name := range n.env {
		fmt.Fprintf(b, "getenv %s\n", name)
	}
	for _, c := range n.files {
		err := filepath.WalkDir(c.src, func(file string, _ fs.DirEntry, err error) error {
			fmt.Fprintf(b, "open %s\n", file)
			return err
		})
		if err != nil {
			return err
		}
	}
	return os.WriteFile(log, b.Bytes(), 0o644)
}
