package debpkg

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// stampName is the file in a tree that lists its packages with their versions.
const stampName = ".packages"

func stamp(pkgs []deb) []string {
	lines := make([]string, len(pkgs))
	for i, p := range pkgs {
		lines[i] = p.name + " " + p.version
	}
	return lines
}

func writeStamp(root string, lines []string) error {
	return os.WriteFile(filepath.Join(root, stampName), []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// readStamp gives nothing for a tree that is not there.
func readStamp(root string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(root, stampName))
	if os.IsNotExist(err) {
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"), err
}

// output runs a program and gives what it prints. Its complaints are the error.
func output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	err := complaint(ctx, cmd, cmd.Run(), &stderr)
	return stdout.Bytes(), err
}

// pipe runs from | to.
func pipe(ctx context.Context, from, to *exec.Cmd) error {
	var fromSaid, toSaid bytes.Buffer
	from.Stderr, to.Stderr = &fromSaid, &toSaid
	r, err := from.StdoutPipe()
	if err != nil {
		return err
	}
	to.Stdin = r
	if err := from.Start(); err != nil {
		return err
	}
	toErr := complaint(ctx, to, to.Run(), &toSaid)
	r.Close() // so that from ends as well if to ended early
	fromErr := complaint(ctx, from, from.Wait(), &fromSaid)
	switch {
	case fromErr == nil:
		return toErr
	case toErr == nil || ctx.Err() != nil:
		return fromErr
	default: // either may have failed because the other did
		return fmt.Errorf("%w; %w", fromErr, toErr)
	}
}

func complaint(ctx context.Context, cmd *exec.Cmd, err error, stderr *bytes.Buffer) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	name := filepath.Base(cmd.Path)
	said, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n") // the rest follows from it
	if said == "" {
		return fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Errorf("%s: %w: %s", name, err, said)
}
