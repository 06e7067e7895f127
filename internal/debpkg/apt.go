package debpkg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// aptConf is read after the machine's own configuration, which may well name a
// proxy. The hooks of an update belong to the machine's lists, not to these.
const aptConf = `
Dir::State %[1]q;
Dir::State::status "%[1]s/status";
Dir::Cache %[1]q;
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures:: "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages { MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages"; flatMetaKey "Packages"; ShortDescription "Packages"; Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages"; Optional "0"; };
#clear APT::Update;
`

// An apt is apt-get with state of its own.
type apt struct {
	conf string
}

type deb struct {
	name, version string
	size          int64
}

func newAPT(cache string) (*apt, error) {
	dir := filepath.Join(cache, "apt")
	for _, sub := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(dir, "apt.conf")
	return &apt{conf}, errors.Join(
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644),
		os.WriteFile(conf, fmt.Appendf(nil, aptConf, dir), 0o644),
	)
}

// resolve updates the package lists and gives the packages of t, by name.
func (a *apt) resolve(ctx context.Context, t Tree) ([]deb, error) {
	// A source that cannot be reached need not be one that matters here: it
	// is an error only if a package is missing afterwards.
	_, updateErr := a.run(ctx, "", "update", "-qq", "--error-on=any")
	pkgs, err := a.closure(ctx, t.Packages)
	if err != nil && updateErr != nil {
		return nil, fmt.Errorf("%w (update: %w)", err, updateErr)
	}
	if err != nil {
		return nil, err
	}
	if len(t.Beside) > 0 {
		there, err := a.closure(ctx, t.Beside)
		if err != nil {
			return nil, err
		}
		pkgs = slices.DeleteFunc(pkgs, func(p deb) bool {
			return slices.ContainsFunc(there, func(q deb) bool { return p.name == q.name })
		})
	}
	if t.Only != "" {
		pkgs = slices.DeleteFunc(pkgs, func(p deb) bool {
			ok, err := path.Match(t.Only, p.name)
			return err != nil || !ok
		})
	}
	if len(pkgs) == 0 {
		return nil, fmt.Errorf("apt-get install %s would install nothing", strings.Join(t.Packages, " "))
	}
	slices.SortFunc(pkgs, func(a, b deb) int { return strings.Compare(a.name, b.name) })
	return pkgs, nil
}

// closure gives the packages of these names and all they depend on.
func (a *apt) closure(ctx context.Context, names []string) ([]deb, error) {
	out, err := a.run(ctx, "", append([]string{"install", "-qq", "--print-uris"}, names...)...)
	if err != nil {
		return nil, err
	}
	return parseURIs(out)
}

// parseURIs reads lines of apt-get --print-uris: 'URI' NAME_VERSION_ARCH.deb SIZE HASH.
func parseURIs(out []byte) ([]deb, error) {
	var pkgs []deb
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			return nil, fmt.Errorf("apt-get --print-uris said %q", line)
		}
		file := strings.Split(f[1], "_")
		size, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil || len(file) != 3 {
			return nil, fmt.Errorf("apt-get --print-uris said %q", line)
		}
		version, err := url.PathUnescape(file[1])
		if err != nil {
			return nil, fmt.Errorf("apt-get --print-uris said %q", line)
		}
		pkgs = append(pkgs, deb{file[0], version, size})
	}
	return pkgs, nil
}

// download leaves the packages as files in dir, checked by apt against the
// signed lists.
func (a *apt) download(ctx context.Context, dir string, pkgs []deb) error {
	args := []string{"download", "-qq"}
	for _, p := range pkgs {
		args = append(args, p.name+"="+p.version)
	}
	_, err := a.run(ctx, dir, args...)
	return err
}

func (a *apt) run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	return output(ctx, dir, "apt-get", append([]string{"-c", a.conf}, args...)...)
}

// unpack puts the content of every package in debs below root. Debian has
// merged /bin, /sbin and /lib into /usr by symlinks that belong to no package.
func unpack(ctx context.Context, root, debs string, without []string) error {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	tarArgs := []string{"-x", "-p", "-C", root, "--keep-directory-symlink", "--warning=no-timestamp"}
	for _, pattern := range without {
		tarArgs = append(tarArgs, "--exclude="+pattern)
	}
	for _, file := range files {
		if err := pipe(ctx,
			exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file),
			exec.CommandContext(ctx, "tar", tarArgs...)); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
		}
	}
	return filepath.WalkDir(root, dropSetuid)
}

// dropSetuid is for a tree that belongs to a user: a guest's root who runs a
// setuid program of it would become that user.
func dropSetuid(path string, d fs.DirEntry, err error) error {
	if err != nil || !d.Type().IsRegular() {
		return err
	}
	info, err := d.Info()
	if err != nil || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) == 0 {
		return err
	}
	return os.Chmod(path, info.Mode().Perm())
}
