package control

import (
	"strings"
	"syscall"
	"testing"
)

func TestDialErrorSaysWhatToDo(t *testing.T) {
	long := "/" + strings.Repeat("x", MaxSocketPath)
	for _, tt := range []struct {
		path  string
		errno syscall.Errno
		want  string
	}{
		{"/run/usbns/control.sock", syscall.ENOENT, "start one with: usbns daemon"},
		{"/run/usbns/control.sock", syscall.EACCES, "use sudo"},
		{OwnDir + "/control.sock", syscall.EACCES, "for the owner of the controller"},
		{OwnDir + "/attach.sock", syscall.ECONNREFUSED, "the daemon of the host"},
		{long, syscall.EINVAL, "--run DIR"},
		{long[1:], syscall.ECONNREFUSED, "start one"}, // the longest that can be
	} {
		err := &DialError{tt.path, tt.errno}
		if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.path) {
			t.Errorf("%v on %s: %v, want %q in it", tt.errno, tt.path, err, tt.want)
		}
	}
}
