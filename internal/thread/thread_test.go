//go:build linux

package thread

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What f does to its thread, nobody else gets to see.
func TestRun(t *testing.T) {
	for range 20 {
		var tid int
		err := Run(func() error {
			tid = unix.Gettid()
			return unix.Unshare(unix.CLONE_FS)
		})
		if err != nil || tid == os.Getpid() {
			t.Fatalf("thread %d of process %d: %v", tid, os.Getpid(), err)
		}
		for { // the thread ends after Run has returned
			_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRunWithout(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	opened := -1
	err := RunWithout(p[1], func() (err error) {
		if _, err := unix.Write(p[1], []byte("x")); !errors.Is(err, unix.EBADF) {
			t.Errorf("write to what the thread must not have: %v", err)
		}
		opened, err = unix.FcntlInt(uintptr(p[0]), unix.F_DUPFD_CLOEXEC, 1000)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(p[1], []byte("x")); err != nil {
		t.Errorf("write to what the process has: %v", err)
	}
	if _, err := unix.FcntlInt(uintptr(opened), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the process has what the thread opened: %v", err)
	}
}
