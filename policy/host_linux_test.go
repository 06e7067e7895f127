package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyboardSafe(t *testing.T) {
	const noConsole = "N: Number=0 Name=leds\nN: Number=1 Name=evdev Minor=64\n"
	for _, tt := range []struct {
		name            string
		sysrq, handlers string // "": no such file
		want            []string
	}{
		{"off, no console", "0\n", noConsole, nil},
		{"neither is there", "", "", nil},
		{"Debian's default", "438\n", noConsole, []string{"sysctl kernel.sysrq=0 (it is 438)"}},
		{"console", "0\n", "N: Number=2 Name=kbd\n" + noConsole, []string{"console"}},
		{"both", "1\n", noConsole + "N: Number=2 Name=kbd\n", []string{"sysrq", "console"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for path, text := range map[string]string{"sys/kernel/sysrq": tt.sysrq, "bus/input/handlers": tt.handlers} {
				if text == "" {
					continue
				}
				path = filepath.Join(dir, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := Host{Proc: dir, Console: os.DevNull}.KeyboardSafe()
			if (err == nil) != (tt.want == nil) {
				t.Fatalf("error %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %v does not say %q", err, want)
				}
			}
		})
	}
}
