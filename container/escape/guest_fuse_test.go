//go:build guest

package escape

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// startFUSE mounts a file system that nobody serves.
func startFUSE(t *testing.T) Known {
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustMount(t, "fuse", t.TempDir(), "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device.Fd()))
	t.Cleanup(func() { device.Close() }) // first, for nothing answers an unmount
	mustMount(t, "fusectl", "/sys/fs/fuse/connections", "fusectl", 0, "")
	return neighbour(Target{Serial: "HERS"})
}

// serveFUSE serves files that are numbered one after the other: the own one,
// which is mounted, and hers, which has been used lately.
func serveFUSE(t *testing.T) Known {
	hers := Target{Serial: "HERS-0815"}
	root := &fs.Inode{}
	dir := t.TempDir()
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true},
		OnAdd: func(ctx context.Context) {
			for name, text := range map[string]string{"own": "", "hers": hers.Serial} {
				file := &fs.MemRegularFile{Data: []byte(text), Attr: fuse.Attr{Mode: 0o444}}
				root.AddChild(name, root.NewPersistentInode(ctx, file, fs.StableAttr{}), false)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	own := filepath.Join(t.TempDir(), "own")
	write(t, own, "")
	mustMount(t, filepath.Join(dir, "own"), own, "", unix.MS_BIND, "")
	if err := unix.Access(filepath.Join(dir, "hers"), unix.R_OK); err != nil {
		t.Fatal(err)
	}
	return neighbour(hers)
}
