package usbip

import (
	"slices"

	"github.com/usbns/usbns/usb"
)

// early holds the UNLINKs that came ahead of their SUBMIT.
//
// Linux sends what it has to submit, then what it has to unlink, from two lists
// (vhci_tx_loop in drivers/usb/usbip/vhci_tx.c): a transfer that is submitted and
// unlinked in between has its UNLINK sent first. Answered with 0, since no such
// transfer is known, the kernel completes the transfer with that as its status,
// and when the RET_SUBMIT comes it ends the connection. So the answer waits for
// the SUBMIT, which is then not made.
//
// Sequence numbers of SUBMITs grow. One that was passed does not come any more.
type early struct {
	any     bool   // a SUBMIT has been seen
	last    uint32 // the highest number of one
	unlinks []CmdUnlink
}

// maxEarly is how many are held. Linux sends as many as it has unlinked at once.
const maxEarly = 1024

// hold keeps c until its SUBMIT comes. It returns the one, c or another, that is
// to be answered at once.
func (e *early) hold(c CmdUnlink) (over *CmdUnlink) {
	if e.any && !before(e.last, c.Unlink) {
		return &c
	}
	e.unlinks = append(e.unlinks, c)
	if len(e.unlinks) > maxEarly {
		over = &CmdUnlink{}
		*over = e.unlinks[0]
		e.unlinks = slices.Delete(e.unlinks, 0, 1)
	}
	return over
}

// before tells whether a comes before b, where numbers wrap.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// overtaken answers the UNLINKs that waited for the SUBMIT of that number or for
// one before it, and tells whether it was unlinked.
func (s *session) overtaken(seq uint32) (yes bool) {
	e := &s.early
	if !e.any || before(e.last, seq) {
		e.any, e.last = true, seq
	}
	if len(e.unlinks) == 0 {
		return false
	}
	s.mu.Lock()
	e.unlinks = slices.DeleteFunc(e.unlinks, func(c CmdUnlink) bool {
		switch {
		case c.Unlink == seq:
			yes = true
			s.retUnlink(c.Seq, usb.StatusCancelled)
		case before(c.Unlink, seq):
			s.retUnlink(c.Seq, usb.StatusOK)
		default:
			return false
		}
		return true
	})
	s.flush()
	return yes
}

// skip reads what belongs to a request that is not made.
func (s *session) skip(c *CmdSubmit, sh shape) error {
	if c.Direction == DirOut {
		if err := s.discard(int(c.Length)); err != nil {
			return err
		}
	}
	return s.discard(sh.packets * IsoPacketSize)
}
