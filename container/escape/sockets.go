//go:build linux

package escape

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
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
}

// sockets asks the daemon for all it knows.
func (a *attempt) sockets() (string, error) {
	paths := append([]string(nil), a.target().Sockets...)
	for _, dir := range []string{"/run", "/var/run", "/tmp"} {
		_ = filepath.WalkDir(a.path(dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type() == fs.ModeSocket {
				paths = append(paths, path)
			}
			return nil
		})
	}
	if len(paths) == 0 {
		return "", errors.New("no socket is to be seen")
	}
	return a.ask(paths)
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
		client := http.Client{
			Timeout: attention,
			Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			}},
		}
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
