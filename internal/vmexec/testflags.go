package main

import (
	"path/filepath"
	"strings"
	"time"
)

// testFlags are the -test.* flags of a test binary's command line, as far as
// go test writes them: -test.name=value.
type testFlags map[string]string

func parseTestFlags(args []string) testFlags {
	flags := testFlags{}
	for _, arg := range args {
		if arg == "--" || arg == "-args" {
			break
		}
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if strings.HasPrefix(name, "test.") {
			flags[name] = value
		}
	}
	return flags
}

// timeout is the test's own, 0 for none.
func (f testFlags) timeout() (time.Duration, error) {
	if f["test.timeout"] == "" {
		return 0, nil
	}
	return time.ParseDuration(f["test.timeout"])
}

// results are the files and directories the flags make the test write.
func (f testFlags) results(dir string) []string {
	outputDir := dir
	if d := f["test.outputdir"]; d != "" {
		outputDir = resolvePath(dir, d)
	}
	var paths []string
	for _, name := range []string{"test.coverprofile", "test.cpuprofile", "test.memprofile", "test.blockprofile", "test.mutexprofile", "test.trace"} {
		if f[name] != "" {
			paths = append(paths, resolvePath(outputDir, f[name]))
		}
	}
	for _, name := range []string{"test.gocoverdir", "test.testlogfile"} {
		if f[name] != "" {
			paths = append(paths, resolvePath(dir, f[name]))
		}
	}
	return paths
}

func resolvePath(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}
