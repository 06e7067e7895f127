//go:build linux

package escape

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == ProcessName {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}
