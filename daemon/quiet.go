//go:build linux

package daemon

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// What is said of one controller: all of what somebody does at a desk, and of a
// program that never stops some 2 MB a day.
const (
	quietLines = 100
	quietTime  = 15 * time.Minute
)

// A quiet handler bounds the lines about each controller and each container, by
// the attribute of that name: who has its files decides how many there would be.
// It says that it leaves out lines, and with the next one how many these were.
type quiet struct {
	slog.Handler
	shares *shares
}

func newQuiet(h slog.Handler) *quiet {
	return &quiet{h, &shares{of: make(map[string]*share)}}
}

func (q *quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &quiet{q.Handler.WithAttrs(attrs), q.shares}
}

func (q *quiet) WithGroup(name string) slog.Handler {
	return &quiet{q.Handler.WithGroup(name), q.shares}
}

func (q *quiet) Handle(ctx context.Context, r slog.Record) error {
	var who slog.Attr
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "controller" || a.Key == "container" {
			who = a
		}
		return who.Key == ""
	})
	note := func(message string, attrs ...slog.Attr) error {
		n := slog.NewRecord(r.Time, slog.LevelWarn, message, 0)
		n.AddAttrs(who)
		n.AddAttrs(attrs...)
		return q.Handler.Handle(ctx, n)
	}
	line, before := q.shares.take(who.Value.String(), r.Time)
	if before > quietLines {
		if err := note("lines left out", slog.Int("lines", before-quietLines)); err != nil {
			return err
		}
	}
	switch {
	case line <= quietLines:
		return q.Handler.Handle(ctx, r)
	case line == quietLines+1:
		return note("lines are left out from here")
	}
	return nil
}

// shares are what was said of each.
type shares struct {
	mu      sync.Mutex
	of      map[string]*share
	clearAt int // entries
}

type share struct {
	since time.Time
	lines int
}

func (s *share) over(now time.Time) bool { return now.Sub(s.since) >= quietTime }

// take counts a line. It is the first one again after some time; before is then
// how many there have been.
func (s *shares) take(who string, now time.Time) (line, before int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.of[who]
	switch {
	case of == nil:
		s.clear(now)
		of = &share{since: now}
		s.of[who] = of
	case of.over(now):
		before = of.lines
		*of = share{since: now}
	}
	of.lines++
	return of.lines, before
}

// clear forgets controllers of which there is nothing to say, whenever there are
// twice as many as it left: most of them have been deleted.
func (s *shares) clear(now time.Time) {
	if len(s.of) < s.clearAt {
		return
	}
	maps.DeleteFunc(s.of, func(_ string, of *share) bool { return of.over(now) && of.lines <= quietLines })
	s.clearAt = max(1000, 2*len(s.of))
}
