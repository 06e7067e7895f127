//go:build linux

package hook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadOCI(t *testing.T) {
	bundle := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	state := `{"ociVersion":"1.0.2-dev","id":"box","status":"creating","pid":269,"bundle":"` + bundle + `"}`
	for config, root := range map[string]string{
		`{"root": {"path": "rootfs"}}`:        bundle + "/rootfs",
		`{"root": {"path": "/srv/box/../x"}}`: "/srv/x",
	} {
		write(config)
		got, err := ReadOCI(strings.NewReader(state))
		if want := (Container{"box", 269, root}); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	for _, config := range []string{`{}`, `[]`, ``} {
		write(config)
		if got, err := ReadOCI(strings.NewReader(state)); err == nil {
			t.Errorf("config.json %q: %+v and no error", config, got)
		}
	}
}

func TestReadBadOCI(t *testing.T) {
	for state, want := range map[string]string{
		``:                         "unexpected end",
		`{"pid":1}`:                "no id",
		`{"id":"box"}`:             "belongs to createRuntime",
		`{"id":"box","pid":-1}`:    "belongs to createRuntime",
		`{"id":"box","pid":1}`:     "no absolute path",
		`{"id":1}`:                 "cannot unmarshal",
		strings.Repeat(" ", 2<<20): "more than 1048576 bytes",
		`{"id":"box","pid":1,"bundle":"/nonesuch"}`: "no such file",
	} {
		if got, err := ReadOCI(strings.NewReader(state)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %+v, %v; want %s", state, got, err, want)
		}
	}
}

func TestReadLXC(t *testing.T) {
	for _, test := range []struct {
		name, pid string
		want      Container
		wantErr   string
	}{
		{"box", "162", Container{"box", 162, "/"}, ""},
		{"", "162", Container{}, "called by LXC"},
		{"box", "", Container{}, "lxc.hook.start-host"},
		{"box", "-1", Container{}, "lxc.hook.start-host"},
	} {
		env := map[string]string{"LXC_NAME": test.name, "LXC_PID": test.pid}
		got, err := ReadLXC(func(key string) string { return env[key] })
		if got != test.want || (err == nil) != (test.wantErr == "") || err != nil && !strings.Contains(err.Error(), test.wantErr) {
			t.Errorf("%+v: got %+v, %v", test, got, err)
		}
	}
}

func FuzzReadOCI(f *testing.F) {
	f.Add(`{"id":"box","pid":1,"bundle":"/nonesuch"}`)
	f.Fuzz(func(t *testing.T, state string) {
		if c, err := ReadOCI(strings.NewReader(state)); err == nil && c.ID == "" {
			t.Errorf("%q: a container without a name", state)
		}
	})
}
