package control

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

const (
	// MaxTransfer bounds the data of a transfer, in bytes. As text it is within
	// MaxMessage.
	MaxTransfer = 256 << 10
	// DefaultTransferTimeout and MaxTransferTimeout are for Transfer.Timeout.
	DefaultTransferTimeout = 5 * time.Second
	MaxTransferTimeout     = 10 * time.Minute
)

// A Transfer is one control, bulk or interrupt transfer to a device that is used
// in user space. Transfers to one endpoint are made in the order they come in.
type Transfer struct {
	// Endpoint is an address: the number, and 0x80 for IN. For control transfers
	// it is 0.
	Endpoint uint8 `json:"endpoint"`
	// Setup is the eight bytes of a control transfer, which tell its direction
	// and length.
	Setup Hex `json:"setup,omitempty"`
	// Data is what goes OUT.
	Data Hex `json:"data,omitempty"`
	// Length is how much a bulk or interrupt endpoint is asked for at the most.
	// 0 is one packet.
	Length int `json:"length,omitempty"`
	// Timeout is in milliseconds. 0 is the default.
	Timeout int64 `json:"timeout_ms,omitempty"`
}

// Transferred is what came of a Transfer.
type Transferred struct {
	Actual int `json:"actual"` // bytes moved
	Data   Hex `json:"data"`   // what came IN
}

// Hex is bytes that are text as hexadecimal digits. Between bytes there may be
// spaces and colons where it is read.
type Hex []byte

func (h Hex) String() string { return hex.EncodeToString(h) }

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

var separators = strings.NewReplacer(" ", "", ":", "", "\t", "", "\r", "", "\n", "")

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(separators.Replace(string(text)))
	if err != nil {
		return fmt.Errorf("want bytes as pairs of hexadecimal digits: %w", err)
	}
	*h = b
	return nil
}
