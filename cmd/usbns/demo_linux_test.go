package main

import (
	"bytes"
	"context"
	"os"
	"testing"
)

// An interrupter cancels when it is told of something.
type interrupter struct {
	at     string
	cancel func()
}

func (i interrupter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(i.at)) {
		i.cancel()
	}
	return len(b), nil
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	t.Setenv("GORACE", "atexit_sleep_ms=0") // the daemon would take a second more to end
	for _, at := range []string{"list -r", "attach", "port -i", "refused", "bar code", "signs", "finger on", "detach"} {
		t.Run(at, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "u") // short enough for sockets
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", dir)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cmd := newRoot()
			cmd.SetArgs([]string{"demo"})
			cmd.SetOut(interrupter{at, cancel})
			cmd.SetErr(t.Output())
			if err := cmd.ExecuteContext(ctx); err == nil {
				t.Error("it succeeds")
			}
			if err := os.Remove(dir); err != nil { // it must be empty
				t.Error(err)
			}
		})
	}
}
