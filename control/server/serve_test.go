//go:build linux

package server_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usbns/usbns/control"
)

// TestStrangersAreRefused calls as a user who may open the sockets, and does not
// administer controllers.
func TestStrangersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir := "@usbns-test-" + rand.Text() // in no file system, where anybody may connect
	client, table := startIn(t, dir)
	if _, err := client.Create(t.Context(), control.Create{Driver: "user"}); err != nil {
		t.Fatalf("root is refused: %v", err)
	}

	var api *net.UnixConn
	var attachErr error
	asNobody(t, func() {
		var err error
		if api, err = net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: dir + "/" + control.Socket}); err != nil {
			t.Fatal(err)
		}
		_, attachErr = client.Attach(t.Context(), api, control.Attach{Controller: "0"})
	})
	defer api.Close()
	if !errors.Is(attachErr, syscall.EPERM) || !strings.Contains(attachErr.Error(), "user 65534") {
		t.Errorf("attach: %v, want %v", attachErr, syscall.EPERM)
	}
	req, err := http.NewRequest(http.MethodDelete, "http://usbns/v1/controllers/0", nil)
	if err != nil {
		t.Fatal(err)
	}
	web := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return api, nil },
	}}
	resp, err := web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e control.Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Errno != syscall.EPERM || resp.StatusCode != http.StatusForbidden {
		t.Errorf("delete: %s, %+v, %v", resp.Status, e, err)
	}
	if table.Controller(0) == nil {
		t.Error("the controller is gone")
	}
}

// asNobody runs f on a thread whose effective user is 65534.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	const keep = ^uintptr(0)
	become := func(uid uintptr) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uid, keep); errno != 0 {
			t.Fatalf("become user %d: %v", uid, errno)
		}
	}
	runtime.LockOSThread() // and a thread that failed to be root again ends with the test
	become(65534)
	f()
	become(0)
	runtime.UnlockOSThread()
}
