//go:build linux

package escape

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

var socketCases = []Case{
	{
		Name: "sockets", try: (*attempt).sockets,
		Why: "whoever reaches the daemon's socket administers all controllers",
	},
	{
		Name: "sockets-abstract", try: (*attempt).abstractSockets,
		Why: "abstract sockets belong to a network namespace, whatever is mounted",
	},
	{
		Name: "sockets-foreign", Harms: true, try: (*attempt).foreignController,
		Why: "a container's own socket, by which it detaches its own devices, may take other names",
	},
}

// sockets asks the daemon for all it knows.
func (a *attempt) sockets() (string, error) {
	paths := a.findSockets()
	if len(paths) == 0 {
		return "", errors.New("no socket is to be seen")
	}
	return a.ask(paths)
}

func (a *attempt) findSockets() []string {
	paths := append([]string(nil), a.target().Sockets...)
	for _, dir := range []string{"/run", "/var/run", "/tmp", "/dev"} {
		_ = filepath.WalkDir(a.path(dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type() == fs.ModeSocket {
				paths = append(paths, path)
			}
			return nil
		})
	}
	return paths
}

// abstractSockets asks those of this network namespace.
func (a *attempt) abstractSockets() (string, error) {
	text, err := os.ReadFile(a.path("/proc/net/unix"))
	if err != nil {
		return "", err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 7 && strings.HasPrefix(f[7], "@") {
			names = append(names, f[7])
		}
	}
	if len(names) == 0 {
		return "", errors.New("there is none")
	}
	return a.ask(names)
}

func (a *attempt) ask(sockets []string) (string, error) {
	var errs error
	for _, socket := range sockets {
		client := clientOf(socket)
		for _, path := range []string{"", "/0", "/0/ports", "/1", "/1/ports", "/2/ports", "/3/ports"} {
			reply, err := client.Get("http://escape/v1/controllers" + path)
			if err != nil {
				errs = errors.Join(errs, err)
				break
			}
			text, err := io.ReadAll(io.LimitReader(reply.Body, 1<<20))
			reply.Body.Close()
			if err != nil {
				errs = errors.Join(errs, err)
			}
			if word := a.target().named(string(text)); word != "" {
				return socket + " tells " + word, nil
			}
		}
	}
	if errs == nil {
		return "", errors.New("the daemon does not tell")
	}
	return "", brief(errs)
}

func clientOf(socket string) *http.Client {
	return &http.Client{
		Timeout: attention,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}},
	}
}

// foreignController deletes what is not controller 0, which is the own one's
// number, by all names that may be taken for another's.
func (a *attempt) foreignController() (string, error) {
	refs := []string{"1", "2", "3", "00", "-0", "0%2f..%2f1", "0%00"}
	for _, name := range a.target().Names {
		refs = append(refs, url.PathEscape(name))
	}
	err := errors.New("no socket is to be seen")
	for _, socket := range a.findSockets() {
		var taken string
		if taken, err = deleteAny(socket, refs); taken != "" {
			return socket + " takes DELETE " + taken, nil
		}
	}
	return "", err
}

// deleteAny returns what the socket lets be deleted.
func deleteAny(socket string, refs []string) (string, error) {
	client := clientOf(socket)
	for _, ref := range refs {
		for _, port := range []string{"/ports/0", "/ports/1", ""} {
			request, err := http.NewRequest(http.MethodDelete, "http://escape/v1/controllers/"+ref+port, nil)
			if err != nil {
				return "", err
			}
			reply, err := client.Do(request)
			if err != nil {
				return "", err // and so it would be each time
			}
			reply.Body.Close()
			if reply.StatusCode < http.StatusBadRequest {
				return request.URL.Path, nil
			}
		}
	}
	return "", errors.New("the daemon refuses")
}
