package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

func TestMain(m *testing.M) {
	commands := map[string]func(){"usbns": main, "usbip": main}
	for name := range processes {
		commands[name] = main
	}
	testscript.Main(m, commands)
}

// TestScripts runs the commands as a shell would. The scripts have two commands
// more:
//
//	export KIND...  exports devices as 1-1, 1-2 and so on at $EXPORTER, whose port is $PORT
//	daemon          runs a daemon in $USBNS_RUN
//
// Both end with the script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		ContinueOnError:     os.Getenv("CI") != "",
		Setup: func(e *testscript.Env) error {
			// The path of a socket must be short.
			dir, err := os.MkdirTemp("", "u")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(dir) })
			e.Setenv("TMPDIR", dir)
			e.Setenv("USBNS_RUN", filepath.Join(dir, "run"))
			e.Setenv("GORACE", "atexit_sleep_ms=0") // each command would take a second
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": func(ts *testscript.TestScript, _ bool, _ []string) {
				b, err := start(1, io.Discard, "daemon", "--run", ts.Getenv("USBNS_RUN"))
				ts.Check(err)
				ts.Defer(func() { ts.Check(b.end()) })
			},
			"export": func(ts *testscript.TestScript, _ bool, kinds []string) {
				args := []string{"export", "--listen", anyPort}
				for _, k := range kinds {
					args = append(args, "--device", k)
				}
				b, err := start(len(kinds), io.Discard, args...)
				ts.Check(err)
				ts.Defer(func() { ts.Check(b.end()) })
				_, addr, _ := strings.Cut(b.lines[0], " on ")
				_, port, err := net.SplitHostPort(addr)
				ts.Check(err)
				ts.Setenv("EXPORTER", addr)
				ts.Setenv("PORT", port)
			},
		},
	})
}

// A background is a command that runs until it is ended.
type background struct {
	lines []string // what it printed first
	stdin *io.PipeWriter
	end   func() error // interrupts it and returns its error
}

// start runs a command in this process until it has printed so many lines.
func start(lines int, stderr io.Writer, args ...string) (*background, error) {
	stdin, tell := io.Pipe()
	stdout, out := io.Pipe()
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(out)
	cmd.SetErr(stderr)
	ctx, interrupt := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		out.CloseWithError(io.EOF)
		ended <- err
	}()
	b := &background{stdin: tell, end: func() error {
		interrupt()
		tell.Close()
		return <-ended
	}}
	printed := bufio.NewScanner(stdout)
	for range lines {
		if !printed.Scan() {
			return nil, fmt.Errorf("usbns %v printed %q and ended: %w", args, b.lines, b.end())
		}
		b.lines = append(b.lines, printed.Text())
	}
	return b, nil
}

// TestEveryCommandHasAnExample leaves out what cobra brings.
func TestEveryCommandHasAnExample(t *testing.T) {
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			if c.Name() != "completion" {
				check(c)
			}
		}
		if !cmd.HasSubCommands() && cmd.Example == "" && cmd.Name() != "version" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
	}
	check(newRoot())
}
