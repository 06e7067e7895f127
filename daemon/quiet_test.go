//go:build linux

package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/usbns/usbns/internal/must"
)

// A controller of which too much would be said does not silence another, and is
// heard of again.
func TestQuiet(t *testing.T) {
	var out bytes.Buffer
	q := newQuiet(slog.NewTextHandler(&out, nil))
	now := time.Now()
	say := func(controller string, n int) (lines int, all string) {
		t.Helper()
		out.Reset()
		for range n {
			r := slog.NewRecord(now, slog.LevelWarn, "attach refused", 0)
			r.AddAttrs(slog.String("controller", controller), slog.Int("process", 7))
			must.OK(t, q.Handle(t.Context(), r))
		}
		return strings.Count(out.String(), "attach refused"), out.String()
	}
	const began = "level=WARN msg=\"lines are left out from here\" controller=hostile\n"
	if n, text := say("hostile", 10_000); n != quietLines || !strings.HasSuffix(text, began) || strings.Count(text, began) != 1 {
		t.Errorf("%d lines of 10,000, the last ones\n%s", n, text[max(0, len(text)-500):])
	}
	if n, text := say("neighbour", quietLines); n != quietLines || strings.Contains(text, "left out") {
		t.Errorf("%d lines of %d of the neighbour", n, quietLines)
	}
	if n, text := say("neighbour", 1); n != 0 || !strings.HasSuffix(text, "controller=neighbour\n") {
		t.Errorf("one more of the neighbour: %s", text)
	}
	out.Reset()
	log := slog.New(q)
	for range 10_000 {
		log.Error("a container does not see a device as it is", "container", "/sys/fs/cgroup/hostile")
	}
	if n := strings.Count(out.String(), "\n"); n != quietLines+1 || !strings.HasSuffix(out.String(), " container=/sys/fs/cgroup/hostile\n") {
		t.Errorf("%d lines of a container, the last ones\n%s", n, out.String()[max(0, out.Len()-500):])
	}
	now = now.Add(quietTime)
	note := fmt.Sprintf("level=WARN msg=\"lines left out\" controller=hostile lines=%d\n", 10_000-quietLines)
	if n, text := say("hostile", 1); n != 1 || !strings.Contains(text, note) {
		t.Errorf("later %d lines:\n%s", n, text)
	}
	now = now.Add(quietTime)
	if n, text := say("hostile", quietLines); n != quietLines || strings.Contains(text, "left out") {
		t.Errorf("after a rest %d lines:\n%s", n, text)
	}
}

// Controllers come and go for years.
func TestQuietForgets(t *testing.T) {
	s := newQuiet(slog.DiscardHandler).shares
	now := time.Now()
	for i := range 10_000 {
		s.take(fmt.Sprint(i), now)
		now = now.Add(quietTime / 100)
	}
	if n := len(s.of); n > 1000 {
		t.Errorf("%d controllers are remembered", n)
	}
}
