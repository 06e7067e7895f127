//go:build linux

package runtimestest

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// What Docker asks for, without its seccomp filter.
//
//go:embed config.json
var ociConfig string

const ociUserNS = `{"linux": {
	"namespaces": [{"type": "user"}],
	"uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
	"gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}]
}}`

type oci struct {
	runtime   Runtime
	dir, name string
	cfg       Config
}

func (o *oci) file(name string) string { return filepath.Join(o.dir, name) }

// args are for the program, with state of this container's own.
func (o *oci) args(command string, args ...string) []string {
	return append([]string{"--root", o.file("state"), "--log", o.file("log"), command}, args...)
}

func (o *oci) start() error {
	parts := []string{ociConfig, fmt.Sprintf(`{"hostname": %q, "root": {"path": %q}, "linux": {"cgroupsPath": %q}}`,
		o.name, o.file("rootfs"), "/"+o.name)}
	if o.cfg.UserNS {
		parts = append(parts, ociUserNS)
	}
	if o.cfg.OCI != "" {
		parts = append(parts, o.cfg.OCI)
	}
	text, err := mergeAll(parts)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.file("config.json"), text, 0o644); err != nil {
		return err
	}
	_, err = run(o.dir, string(o.runtime), o.args("run", "--detach", "--bundle", o.dir, "--pid-file", o.file("pid"), o.name)...)
	if err != nil {
		log, _ := os.ReadFile(o.file("log")) // not there if it failed early
		return fmt.Errorf("%w\n%s", err, log)
	}
	return nil
}

func (o *oci) pid() (int, error) {
	text, err := os.ReadFile(o.file("pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// attach has crun not wait: now and then its 1.8.1 loses what it waits for, and
// says 255 while that goes on.
func (o *oci) attach(argv []string) []string {
	words := append([]string{o.name}, argv...)
	if o.runtime == Crun {
		words = append([]string{"--detach"}, words...)
	}
	return append([]string{string(o.runtime)}, o.args("exec", words...)...)
}

func (o *oci) update() error {
	_, err := run(o.dir, string(o.runtime), o.args("update", "--pids-limit", "1000", o.name)...)
	return err
}

func (o *oci) stop() error {
	if _, err := os.Stat(o.file("pid")); errors.Is(err, os.ErrNotExist) {
		return nil // it was never started
	}
	_, err := run(o.dir, string(o.runtime), o.args("delete", "--force", o.name)...)
	return err
}

// mergeAll gives one JSON object of many.
func mergeAll(parts []string) ([]byte, error) {
	var all any
	for _, part := range parts {
		var value any
		if err := json.Unmarshal([]byte(part), &value); err != nil {
			return nil, fmt.Errorf("%w in %s", err, part)
		}
		all = merge(all, value)
	}
	return json.Marshal(all)
}

func merge(a, b any) any {
	switch b := b.(type) {
	case map[string]any:
		into, ok := a.(map[string]any)
		if !ok {
			return b
		}
		for key, value := range b {
			into[key] = merge(into[key], value)
		}
		return into
	case []any:
		if a, ok := a.([]any); ok {
			return append(a, b...)
		}
	}
	return b
}
