package usbip

import (
	"errors"
	"time"
)

// Limits bound what the other side of one connection can make this one hold.
// A field that is 0 has its default.
type Limits struct {
	// URBs is the number of transfers in flight. Default: 1024.
	URBs int
	// Bytes is the data of all transfers in flight and of all answers the
	// peer has not taken yet; a single larger transfer fails. Default: 16 MiB,
	// the default of Linux for all of usbfs (usbfs_memory_mb).
	Bytes int
	// WriteTimeout ends a connection whose peer takes less than 64 KiB of
	// what is waiting for it in that time. Default: 30 s.
	WriteTimeout time.Duration
	// PeerTimeout ends a TCP connection whose peer vanished without a word:
	// one that has acknowledged nothing for that long, be it data or the
	// keepalive probes that are sent when there is none. Whole seconds count,
	// from 2 on. Default: 30 s.
	PeerTimeout time.Duration
}

// Defaults of Limits and options.
const (
	DefaultURBs               = 1024
	DefaultBytes              = 16 << 20
	DefaultWriteTimeout       = 30 * time.Second
	DefaultPeerTimeout        = 30 * time.Second
	DefaultUnlinkTimeout      = 5 * time.Second
	DefaultResetTimeout       = 5 * time.Second
	DefaultHandshakeTimeout   = 10 * time.Second
	DefaultHandshakes         = 64
	DefaultEnumerationTimeout = 30 * time.Second // some dozens of round trips
)

func (l Limits) orDefaults() Limits {
	return Limits{
		URBs:         orDefault(l.URBs, DefaultURBs),
		Bytes:        orDefault(l.Bytes, DefaultBytes),
		WriteTimeout: orDefault(l.WriteTimeout, DefaultWriteTimeout),
		PeerTimeout:  orDefault(l.PeerTimeout, DefaultPeerTimeout),
	}
}

func orDefault[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// slack is what may wait to be written beyond Limits.Bytes: answers that
// carry no data, of which a peer can cause any number.
const slack = 1 << 20

var errNotReading = errors.New("peer does not read what is sent to it")
