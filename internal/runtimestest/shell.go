//go:build linux

package runtimestest

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
)

// A Shell is a shell in a container, told what to do through a pipe.
type Shell struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

// NewShell talks to the shell at the other ends of in and out.
func NewShell(t *testing.T, in io.Writer, out io.Reader) *Shell {
	return &Shell{t, in, bufio.NewReader(out)}
}

// Say returns all that a command prints.
func (s *Shell) Say(command string) string {
	s.t.Helper()
	const end = "#end\n"
	if _, err := fmt.Fprintf(s.in, "{ %s\n} 2>&1; echo '#end'\n", command); err != nil {
		s.t.Fatal(err)
	}
	var text strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%s: %v after %q", command, err, text.String())
		}
		if line == end {
			return text.String()
		}
		text.WriteString(line)
	}
}
