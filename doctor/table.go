//go:build linux

package doctor

import (
	"strings"

	"github.com/moby/sys/mountinfo"
)

// A table is a process's table of mounts.
type table []*mountinfo.Info

// at returns the mount that a path is on, as the kernel finds it: a mount counts
// only where no other lies over the place that it is mounted on. It returns nil
// if there is none. What is mounted on links of the path's is not found.
func (t table) at(path string) *mountinfo.Info {
	m := t.root()
	if m == nil {
		return nil
	}
	for end := 1; end <= len(path); end++ {
		if end < len(path) && path[end] != '/' {
			continue
		}
		for over := t.on(m, path[:end]); over != nil; over = t.on(m, path[:end]) {
			m = over
		}
	}
	return m
}

// root returns the mount of the process's root.
func (t table) root() *mountinfo.Info {
	shown := make(map[int]bool, len(t))
	for _, m := range t {
		shown[m.ID] = true
	}
	for _, m := range t {
		if m.Mountpoint == "/" && (!shown[m.Parent] || m.Parent == m.ID) {
			for over := t.on(m, "/"); over != nil; over = t.on(m, "/") {
				m = over
			}
			return m
		}
	}
	return nil
}

// on returns what is mounted on a place of a mount.
func (t table) on(m *mountinfo.Info, point string) *mountinfo.Info {
	for _, over := range t {
		if over.Parent == m.ID && over.ID != m.ID && over.Mountpoint == point {
			return over
		}
	}
	return nil
}

// writable reports whether both the mount and its file system can be written to.
func writable(m *mountinfo.Info) bool {
	for _, options := range []string{m.Options, m.VFSOptions} {
		for option := range strings.SplitSeq(options, ",") {
			if option == "ro" {
				return false
			}
		}
	}
	return true
}
