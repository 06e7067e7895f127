package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestTransfer(t *testing.T) {
	dir := startDaemon(t)
	e := startExport(t, anyPort, "scanner", "loopback")
	defer e.end()
	execute(t, "controller", "create", "--run", dir, "alice")
	for port, busid := range []string{"1-1", "1-2"} {
		if got, want := execute(t, "attach", "--run", dir, "-r", e.addr, "-b", busid), fmt.Sprintf("port %d\n", port); got != want {
			t.Fatalf("%s is on %s", busid, got)
		}
	}
	transfer := func(port string, args ...string) string {
		t.Helper()
		return execute(t, append([]string{"transfer", "--run", dir, "-i", "alice", "--timeout", "1m", "-p", port}, args...)...)
	}
	if got := transfer("0", "--setup", "80 06 0001 0000 0800"); got != "1201000200000040\n" {
		t.Errorf("the scanner's device descriptor begins with %q", got)
	}
	fmt.Fprintln(e.stdin, "1-1 7")
	if got := transfer("0", "--endpoint", "0x81"); got != "0000240000000000\n" {
		t.Errorf("the scanner types %q, want a 7", got)
	}
	if got := transfer("1", "-e", "1", "--data", "75:73:62", "--json"); !strings.Contains(got, `"actual": 3`) {
		t.Errorf("what was sent is %s", got)
	}
	if got := transfer("1", "-e", "0x81", "--length", "512", "--json"); !strings.Contains(got, `"data": "757362"`) {
		t.Errorf("what comes back is %s", got)
	}
}

func TestTransferFromStdin(t *testing.T) {
	for text, want := range map[string]string{"00 01\nff\n": "0001ff", "": ""} {
		if data, err := readData(strings.NewReader(text), "-"); err != nil || data.String() != want {
			t.Errorf("%q is %v, %v", text, data, err)
		}
	}
	endless := strings.NewReader(strings.Repeat("00 ", 1<<20))
	if data, err := readData(endless, "-"); err == nil {
		t.Errorf("%d bytes are taken", len(data))
	}
}
