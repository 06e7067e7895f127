package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

func init() {
	// QEMU is to die with the thread that starts it: that must be the last.
	runtime.LockOSThread()
}

func main() {
	if os.Getpid() == 1 {
		guest()
	}
	h, err := newHost()
	if err != nil {
		fail(err)
	}
	flag.StringVar(&h.kernel, "kernel", "6.12", "Debian kernel `version`: 6.12 or 6.1")
	flag.BoolVar(&h.console, "console", false, "show the guest's kernel console on stderr")
	fetch := flag.Bool("fetch", false, "fetch what guests need into the cache and exit")
	update := flag.Bool("update", false, "fetch newer versions of it into the cache and exit")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), `Usage:
	go test -exec 'vmexec [-kernel VERSION] [-console]' PACKAGES
	vmexec -fetch | -update
`)
		flag.PrintDefaults()
	}
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	switch {
	case *fetch || *update:
		err = prepare(ctx, *update)
	case flag.NArg() == 0:
		flag.Usage()
		os.Exit(2)
	default:
		err = h.run(ctx, flag.Arg(0), flag.Args()[1:])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	var exit exitError
	if errors.As(err, &exit) {
		os.Exit(int(exit))
	}
	fmt.Fprintln(os.Stderr, "vmexec:", err)
	os.Exit(1)
}

// An exitError is the exit status of a test that ran to its end and failed.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
