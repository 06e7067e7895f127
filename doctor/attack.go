//go:build linux

package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/usbns/usbns/container/escape"
	"github.com/usbns/usbns/container/join"
)

// Bounds of what the attacker says, in bytes: it runs among strangers.
const (
	maxResults   = 1 << 20
	maxComplaint = 1 << 12
)

// attack runs the attacker in a container and returns its results.
func attack(ctx context.Context, cfg join.Config, known escape.Known) ([]byte, error) {
	text, err := json.Marshal(known)
	if err != nil {
		return nil, err
	}
	in, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	_, err = tell.Write(text) // which a pipe takes as a whole
	if err := errors.Join(err, tell.Close()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tooMuch := func() { cancel(errors.New("the attacker says too much, so it is not ours any more")) }
	results, err := newStream(maxResults, tooMuch)
	if err != nil {
		return nil, err
	}
	complaint, err := newStream(maxComplaint, tooMuch)
	if err != nil {
		results.end()
		return nil, err
	}
	cfg.Argv, cfg.Stdin, cfg.Stdout, cfg.Stderr = []string{escape.ProcessName}, in, results.theirs, complaint.theirs
	err = join.Run(ctx, cfg)
	said, why := results.end(), complaint.end()
	if err != nil {
		return nil, fmt.Errorf("%w %s", err, printable(string(why)))
	}
	return said, nil
}

// A stream is what another process says.
type stream struct {
	theirs *os.File // its end
	ours   *os.File
	text   chan []byte
}

// newStream calls tooMuch if more is said than the limit, which is not kept.
func newStream(limit int64, tooMuch func()) (*stream, error) {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &stream{theirs, ours, make(chan []byte, 1)}
	go func() {
		text, _ := io.ReadAll(io.LimitReader(ours, limit+1)) // what comes before an error counts
		if int64(len(text)) > limit {
			tooMuch()
		}
		s.text <- text
	}()
	return s, nil
}

// end returns what was said by a process that has ended. Another may have its end
// of the stream as well, and is not waited for.
func (s *stream) end() []byte {
	s.theirs.Close()
	_ = s.ours.SetReadDeadline(time.Now().Add(time.Second))
	text := <-s.text
	s.ours.Close()
	return text
}

// judge reads the attacker's results, a line of JSON each. Each case has to have
// been tried.
func judge(known escape.Known, lines []byte) (*Proof, error) {
	type one struct {
		name string
		own  bool
	}
	results := make(map[one]escape.Result)
	for line := range bytes.Lines(lines) {
		var r escape.Result
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("what the attacker says: %w", err)
		}
		results[one{r.Case, r.Own}] = r
	}
	proof := &Proof{Own: label(known.Own), Neighbour: label(known.Neighbour)}
	for _, own := range []bool{false, true} {
		for _, c := range escape.Cases() {
			if own && (!c.Own || c.Harms) {
				continue
			}
			r, tried := results[one{c.Name, own}]
			if !tried {
				return nil, fmt.Errorf("the attacker ended before it had tried %s", c.Name)
			}
			proof.Attempts = append(proof.Attempts, Attempt{
				Case: c.Name, Why: c.Why, Own: own, Verdict: verdict(r), Text: printable(r.Text),
			})
		}
	}
	return proof, nil
}

func verdict(r escape.Result) Verdict {
	switch {
	case r.Own && r.Reached:
		return Reached
	case r.Own:
		return Blind
	case r.Reached:
		return Escaped
	default:
		return KeptOut
	}
}

func label(t escape.Target) string { return fmt.Sprintf("%s (%s)", t.BusID, printable(t.Serial)) }

// printable keeps what may come from a container or a device from steering a
// terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
}
