package debpkg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A repository is a directory of packages that apt takes for its only source.
type repository struct {
	t   *testing.T
	dir string
}

// newRepository has app, which depends on lib and recommends extra.
func newRepository(t *testing.T) *repository {
	t.Helper()
	for _, name := range []string{"apt-get", "dpkg-deb", "tar"} {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("no %s on this machine", name)
		}
		t.Skipf("no %s on this machine", name)
	}
	r := &repository{t, t.TempDir()}
	r.write("sources.list", fmt.Sprintf("deb [trusted=yes] copy:%s ./\n", r.dir))
	r.write("apt.conf", fmt.Sprintf("Dir::Etc::sourcelist %q; Dir::Etc::sourceparts %q;", r.dir+"/sources.list", r.dir+"/none"))
	t.Setenv("APT_CONFIG", r.dir+"/apt.conf")

	r.add("app", "2.0", "Depends: lib\nRecommends: extra\n", "bin/app", "usr/share/doc/app/README")
	r.add("lib", "1:1.0", "", "usr/lib/lib.so")
	r.add("extra", "1.0", "", "usr/lib/extra.so")
	return r
}

func (r *repository) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// add builds a package whose files hold its version, and lists it.
func (r *repository) add(name, version, fields string, files ...string) {
	r.t.Helper()
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: nobody\n%sDescription: for a test\n", name, version, fields)
	src := name + "-" + version
	r.write(src+"/DEBIAN/control", control)
	for _, file := range files {
		r.write(filepath.Join(src, file), version)
		if err := os.Chmod(filepath.Join(r.dir, src, file), 0o755|fs.ModeSetuid); err != nil {
			r.t.Fatal(err)
		}
	}
	deb := fmt.Sprintf("%s_%s_amd64.deb", name, strings.ReplaceAll(version, ":", "."))
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", filepath.Join(r.dir, src), filepath.Join(r.dir, deb)).CombinedOutput(); err != nil {
		r.t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	r.list(control, deb)
}

// list adds a package to the index.
func (r *repository) list(control, deb string) {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, deb))
	if err != nil {
		r.t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(r.dir, "Packages"))
	if err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	r.write("Packages", fmt.Sprintf("%s%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", index, control, deb, len(data), sha256.Sum256(data)))
}

// remove leaves apt nothing to fetch.
func (r *repository) remove() {
	r.t.Helper()
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Fatal(err)
	}
}

func openCache(t *testing.T, dir string) (*Cache, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	c, err := OpenDir(dir, &log)
	if err != nil {
		t.Fatal(err)
	}
	return c, &log
}

// files lists what is in a tree but directories.
func files(t *testing.T, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// checkEmpty makes sure that a fetch that failed left nothing.
func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "apt" && e.Name() != "lock" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

var appTree = Tree{Name: "app", Packages: []string{"app"}, Without: []string{"./usr/share/doc"}}

func TestTreeHoldsDependencies(t *testing.T) {
	newRepository(t)
	c, log := openCache(t, t.TempDir())
	if c.Has(appTree) {
		t.Error("an empty cache has a tree")
	}
	root, err := c.Path(t.Context(), appTree)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Has(appTree) {
		t.Error("the cache does not have what it fetched")
	}
	want := []string{".packages", "bin", "lib", "lib64", "sbin", "usr/bin/app", "usr/lib/lib.so"}
	if diff := cmp.Diff(want, files(t, root)); diff != "" {
		t.Error(diff)
	}
	if got, want := content(t, root+"/.packages"), "app 2.0\nlib 1:1.0\n"; got != want {
		t.Errorf("stamp %q, want %q", got, want)
	}
	if got := content(t, root+"/bin/app"); got != "2.0" {
		t.Errorf("/bin/app = %q", got)
	}
	if info, err := os.Stat(root + "/bin/app"); err != nil || info.Mode() != 0o755 {
		t.Errorf("mode %v, %v; want no setuid", info.Mode(), err)
	}
	if !strings.Contains(log.String(), "fetching 2 Debian packages for app, 0.0 MB, into ") {
		t.Errorf("log %q", log)
	}
}

func TestTreeWithOnlySomePackages(t *testing.T) {
	newRepository(t)
	c, _ := openCache(t, t.TempDir())
	root, err := c.Path(t.Context(), Tree{Name: "app", Packages: []string{"app"}, Only: "li*"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, root+"/.packages"), "lib 1:1.0\n"; got != want {
		t.Errorf("stamp %q, want %q", got, want)
	}
}

func TestTreeBesideAnother(t *testing.T) {
	newRepository(t)
	c, _ := openCache(t, t.TempDir())
	root, err := c.Path(t.Context(), Tree{Name: "app", Packages: []string{"app", "extra"}, Beside: []string{"lib"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, root+"/.packages"), "app 2.0\nextra 1.0\n"; got != want {
		t.Errorf("stamp %q, want %q", got, want)
	}
}

func TestPathFetchesOnce(t *testing.T) {
	r := newRepository(t)
	dir := t.TempDir()
	c, _ := openCache(t, dir)
	first, err := c.Path(t.Context(), appTree)
	if err != nil {
		t.Fatal(err)
	}
	r.remove()
	c, log := openCache(t, dir)
	second, err := c.Path(t.Context(), appTree)
	if err != nil || second != first {
		t.Errorf("%s, %v; want %s", second, err, first)
	}
	if log.Len() > 0 {
		t.Errorf("log %q", log)
	}
	other := appTree
	other.Without = nil
	if c.Has(other) {
		t.Error("another tree of the same name is taken for this one")
	}
}

func TestUpdate(t *testing.T) {
	r := newRepository(t)
	c, log := openCache(t, t.TempDir())
	root, err := c.Path(t.Context(), appTree)
	if err != nil {
		t.Fatal(err)
	}
	r.add("lib", "1:1.1", "", "usr/lib/lib.so")
	if _, err := c.Path(t.Context(), appTree); err != nil {
		t.Fatal(err)
	}
	if got := content(t, root+"/lib/lib.so"); got != "1:1.0" {
		t.Errorf("version %s before the update", got)
	}
	for range 2 {
		log.Reset()
		if err := c.Update(t.Context(), appTree); err != nil {
			t.Fatal(err)
		}
		if got := content(t, root+"/lib/lib.so"); got != "1:1.1" {
			t.Errorf("version %s after the update", got)
		}
	}
	if want := "debpkg: app is up to date\n"; log.String() != want {
		t.Errorf("log of the second update %q, want %q", log, want)
	}

	r.remove()
	if err := c.Update(t.Context(), appTree); err == nil {
		t.Error("no error without a source")
	}
	if got := content(t, root+"/lib/lib.so"); got != "1:1.1" {
		t.Errorf("version %s after an update that failed", got)
	}
}

func TestFetchThatFailsLeavesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(*repository)
		tree  Tree
		want  string
	}{
		"no such package": {
			func(*repository) {},
			Tree{Name: "x", Packages: []string{"nonesuch"}},
			"fetch Debian packages for x: apt-get: exit status 100: E: Unable to locate package nonesuch",
		},
		"nothing left of it": {
			func(*repository) {},
			Tree{Name: "x", Packages: []string{"app"}, Only: "nonesuch"},
			"would install nothing",
		},
		"a download that is not what the index says": {
			func(r *repository) { r.write("lib_1.1.0_amd64.deb", "something else") },
			appTree,
			"Hash Sum mismatch",
		},
		"a package that does not unpack": {
			func(r *repository) {
				r.write("bad.deb", "no package at all")
				r.list("Package: lib\nVersion: 1:1.2\nArchitecture: amd64\nMaintainer: nobody\nDescription: for a test\n", "bad.deb")
			},
			appTree,
			"unpack lib_1%3a1.2_amd64.deb: dpkg-deb: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepository(t)
			tt.spoil(r)
			dir := t.TempDir()
			c, _ := openCache(t, dir)
			_, err := c.Path(t.Context(), tt.tree)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want a line with %q", err, tt.want)
			}
			checkEmpty(t, dir)
		})
	}
}

func TestProcessesShareACache(t *testing.T) {
	newRepository(t)
	dir := t.TempDir()
	var paths, logs [2]string
	var wait sync.WaitGroup
	for i := range paths {
		c, log := openCache(t, dir) // a lock of its own, as a process has
		wait.Go(func() {
			var err error
			if paths[i], err = c.Path(t.Context(), appTree); err != nil {
				t.Error(err)
			}
			logs[i] = log.String()
		})
	}
	wait.Wait()
	if paths[0] != paths[1] {
		t.Errorf("paths %q", paths)
	}
	if n := strings.Count(logs[0]+logs[1], "fetching"); n != 1 {
		t.Errorf("fetched %d times:\n%s%s", n, logs[0], logs[1])
	}
}

func TestWaitForAnotherProcessCanBeCancelled(t *testing.T) {
	newRepository(t)
	dir := t.TempDir()
	holder, _ := openCache(t, dir)
	unlock, err := holder.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := OpenDir(dir, writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "waiting for another process") {
			cancel()
		}
		return len(p), nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Path(ctx, appTree); err != context.Canceled {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCancelledFetchLeavesNothing(t *testing.T) {
	newRepository(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := OpenDir(dir, writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Path(ctx, appTree); err == nil || ctx.Err() == nil {
		t.Errorf("error %v", err)
	}
	checkEmpty(t, dir)
}

func TestFetchRemovesWhatAKilledOneLeft(t *testing.T) {
	newRepository(t)
	dir := t.TempDir()
	left := filepath.Join(dir, ".fetch-123", "debs")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	c, _ := openCache(t, dir)
	if _, err := c.Path(t.Context(), appTree); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(left)); err == nil {
		t.Error("it is still there")
	}
}

func TestParseURIs(t *testing.T) {
	got, err := parseURIs([]byte("'copy:/x/a_1%3a2-3_all.deb' a_1%3a2-3_all.deb 42 SHA256:00\n"))
	if want := []deb{{"a", "1:2-3", 42}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, line := range []string{"'x'", "'x' a.deb 1 h", "'x' a_1_all.deb many h", "'x' a_%zz_all.deb 1 h"} {
		if got, err := parseURIs([]byte(line)); err == nil {
			t.Errorf("%s: %v and no error", line, got)
		}
	}
}
