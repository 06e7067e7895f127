package usbip

import (
	"math/bits"
	"sync"
)

// A buffer is a pooled piece of memory on its way to or from a connection.
// b[lo:hi] is what is left to write.
type buffer struct {
	b      []byte
	lo, hi int
	shared bool // small messages may be added behind hi
	class  int  // of its pool; noClass for memory of others
}

const noClass = maxClass + 1

// The pools hold buffers of 512 bytes, 1 KiB, and so on to 1 MiB, each with
// room for a header more so that a power of two of data fits with its own.
// Larger ones are too rare to be kept.
const (
	minClass    = 9
	maxClass    = 20
	classMargin = 2 * HeaderSize
)

var buffers [maxClass - minClass + 1]sync.Pool

// getBuffer returns a buffer of at least n bytes of old content.
func getBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n-classMargin-1, 0))), minClass)
	if class > maxClass {
		return &buffer{b: make([]byte, n), class: noClass}
	}
	if b, ok := buffers[class-minClass].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 1<<class+classMargin), class: class}
}

func (b *buffer) free() {
	b.lo, b.hi, b.shared = 0, 0, false
	if b.class == noClass {
		b.b = nil
		return
	}
	buffers[b.class-minClass].Put(b)
}

// borrow makes b a view of data, which must stay as it is until b.b is nil.
func (b *buffer) borrow(data []byte) *buffer {
	*b = buffer{b: data, hi: len(data), class: noClass}
	return b
}
