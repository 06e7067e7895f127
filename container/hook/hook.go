//go:build linux

// Package hook understands what container runtimes tell the programs that they
// call when a container starts.
//
// OCI runtimes write the container's state to the standard input of a hook, as
// JSON. LXC tells it by environment variables. Both become a [Container].
//
// # When
//
// The hook must run in the host's namespaces, when the container's namespaces
// and mounts are there and none of its programs runs yet, and its failure must
// keep the container from starting. These are OCI's createRuntime and LXC's
// start-host. At createRuntime the container's root is still a directory of its
// mount namespace, at start-host it is that namespace's root: hence Root.
//
// Seen with Debian 12's LXC 5.0.2, runc 1.1.5 and crun 1.8.1. runc says at
// createRuntime that the container is "creating", crun that it is "created", and
// only crun tells its root, so that is read from the bundle. LXC tells a
// start-host hook the process id, and the hook's own cgroup is that of LXC's
// monitor.
//
// # Dead ends
//
// createContainer and LXC's mount hook run in the container's user namespace,
// without the rights they would need; startContainer in its mount namespace,
// where our program is not. poststart comes when the container's program runs
// already. A hook of LXC by the name "start" must be inside the container. No hook
// is needed for the end: a container can end without its runtime's doing, and its
// cgroup tells.
package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// MaxState bounds the JSON that is read, in bytes: annotations can be long.
const MaxState = 1 << 20

// A Container is what a runtime tells of one.
type Container struct {
	// ID is its name, unique among the containers of its runtime.
	ID string
	// PID is its first process as the hook's pid namespace numbers it.
	PID int
	// Root is the container's root as a path in the mount namespace of PID.
	Root string
}

// ReadOCI reads the state that an OCI runtime writes, and the bundle that it
// names.
func ReadOCI(r io.Reader) (c Container, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("what the OCI runtime tells its hook: %w", err)
		}
	}()
	text, err := io.ReadAll(io.LimitReader(r, MaxState+1))
	if err != nil {
		return c, err
	}
	if len(text) > MaxState {
		return c, fmt.Errorf("more than %d bytes", MaxState)
	}
	var state struct {
		ID     string `json:"id"`
		PID    int    `json:"pid"`
		Bundle string `json:"bundle"`
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return c, err
	}
	if state.ID == "" {
		return c, errors.New("no id")
	}
	if state.PID <= 0 {
		return c, fmt.Errorf("process %d of %s: the hook belongs to createRuntime", state.PID, state.ID)
	}
	root, err := rootOf(state.Bundle)
	return Container{ID: state.ID, PID: state.PID, Root: root}, err
}

// rootOf reads where the root of a bundle is.
func rootOf(bundle string) (string, error) {
	if !filepath.IsAbs(bundle) {
		return "", fmt.Errorf("bundle %q is no absolute path", bundle)
	}
	text, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", err
	}
	var config struct {
		Root struct {
			Path string `json:"path"`
		} `json:"root"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return "", fmt.Errorf("%s/config.json: %w", bundle, err)
	}
	if config.Root.Path == "" {
		return "", fmt.Errorf("%s/config.json has no root", bundle)
	}
	if filepath.IsAbs(config.Root.Path) {
		return filepath.Clean(config.Root.Path), nil
	}
	return filepath.Join(bundle, config.Root.Path), nil
}

// ReadLXC reads the variables that LXC sets; getenv is os.Getenv.
func ReadLXC(getenv func(string) string) (Container, error) {
	c := Container{ID: getenv("LXC_NAME")}
	if c.ID == "" {
		return Container{}, errors.New("LXC_NAME is not set: the hook is to be called by LXC")
	}
	pid, err := strconv.Atoi(getenv("LXC_PID"))
	if err != nil || pid <= 0 {
		return Container{}, fmt.Errorf("LXC_PID is %q: the hook belongs to lxc.hook.start-host", getenv("LXC_PID"))
	}
	c.PID, c.Root = pid, "/"
	return c, nil
}
