//go:build linux

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentedCommandsExist parses each line of the documentation that runs
// usbns, and runs none.
func TestDocumentedCommandsExist(t *testing.T) {
	line := regexp.MustCompile(`(?m)^ {4}(?:[$#] )?(?:sudo )?(?:bin/)?usbns ([^#|&>\n]*)`)
	for _, doc := range []string{"../../README.md", "../../docs/operating.md", "../../docs/containers.md"} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		commands := line.FindAllStringSubmatch(string(text), -1)
		if len(commands) == 0 {
			t.Errorf("%s runs no command", doc)
		}
		for _, m := range commands {
			root := newRoot()
			cmd, args, err := root.Find(strings.Fields(m[1]))
			if err == nil {
				err = cmd.ParseFlags(args)
			}
			if err == nil {
				err = cmd.ValidateArgs(cmd.Flags().Args())
			}
			if err == nil {
				err = cmd.ValidateRequiredFlags()
			}
			if err != nil {
				t.Errorf("%s: usbns %s: %v", doc, m[1], err)
			}
		}
	}
}
