package usbip

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	chunkSize = 16 << 10 // reads, and collected small messages
	copyMax   = 4 << 10  // larger messages are written from their own buffer
	pieceMax  = 64 << 10 // of a write that may take up to the write timeout
)

// A link is a connection in its URB phase: what Importer and Exporter share.
//
// One goroutine, the reader, reads. Messages to be sent are queued under mu
// and written by whoever queued them, without blocking; while the reader has
// more input at hand it holds the writing back, so that many answers leave in
// one write. Only when the socket is full does a goroutine of its own wait
// for it.
type link struct {
	conn   net.Conn
	raw    rawConn // non-blocking access; without it every write is left to drain
	limits Limits

	in     *buffer           // nil while there is nothing to read
	r, w   int               // in.b[r:w] is read and not used yet
	single *[HeaderSize]byte // what is read first where raw is not usable

	drainFunc func()   // made once, so that starting it does not allocate
	told      []*batch // of the reader: whom it has told that it is at work

	mu      sync.Mutex
	err     error // why the link has ended
	queue   []*buffer
	head    int
	queued  int            // bytes in queue and in the hands of a writer
	held    int            // how many write soon, the reader or others
	writing bool           // somebody is writing
	stalled *buffer        // what drain starts with
	active  sync.WaitGroup // who is writing, and who closes conn
	sent    sync.Cond      // a borrowed buffer was written, or the link failed
	batches []*batch       // never changed, but replaced
}

// A batch is told that the reader has input at hand, from which several things
// may follow, and that they have.
type batch struct{ hold, release func() }

func (l *link) init(conn net.Conn, limits Limits) {
	l.conn, l.limits = conn, limits.orDefaults()
	l.held = 1 // by the reader to come
	l.sent.L = &l.mu
	l.drainFunc = l.drain
	if l.raw.init(l); !l.raw.ok() {
		l.single = new([HeaderSize]byte)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tuneTCP(tcp, l.limits.PeerTimeout)
	}
}

// fail ends the link. The first reason counts.
func (l *link) fail(err error) {
	l.mu.Lock()
	l.failLocked(err)
	l.mu.Unlock()
}

func (l *link) failLocked(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	for _, b := range l.queue[l.head:] {
		b.free()
	}
	l.queue, l.head = nil, 0
	l.sent.Broadcast()
	// TLS writes when it closes, and may wait for that.
	l.active.Go(func() { l.conn.Close() })
}

// next returns the n bytes that come next, at most chunkSize. They are good
// until the next call.
func (l *link) next(n int) ([]byte, error) {
	for l.w-l.r < n {
		if err := l.fill(); err != nil {
			return nil, err
		}
	}
	b := l.in.b[l.r : l.r+n]
	l.r += n
	return b, nil
}

// readFull reads past the buffer what is not in it yet.
func (l *link) readFull(p []byte) error {
	if l.in != nil {
		n := copy(p, l.in.b[l.r:l.w])
		l.r += n
		p = p[n:]
	}
	for len(p) > 0 {
		// A short rest comes with what follows it.
		if len(p) < copyMax {
			b, err := l.next(len(p))
			copy(p, b)
			return noEOF(err)
		}
		l.pause()
		n, err := l.read(p)
		l.resume()
		if p = p[n:]; err != nil && len(p) > 0 {
			return noEOF(err)
		}
	}
	return nil
}

// discard reads n bytes and forgets them.
func (l *link) discard(n int) error {
	for n > 0 {
		if l.w == l.r {
			if err := l.fill(); err != nil {
				return noEOF(err)
			}
		}
		k := min(n, l.w-l.r)
		l.r += k
		n -= k
	}
	return nil
}

func (l *link) dropInput() {
	if l.in != nil {
		l.in.free()
		l.in = nil
	}
}

// explainEOF names the end of a connection between two messages.
func explainEOF(err error) error {
	if err == io.EOF {
		return fmt.Errorf("peer closed the connection: %w", err)
	}
	return err
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fill reads more into the buffer. While there is none it waits without one.
func (l *link) fill() error {
	l.pause()
	defer l.resume()
	if l.r == l.w {
		l.r, l.w = 0, 0
		return l.fillIdle()
	}
	if l.r > 0 {
		l.w = copy(l.in.b, l.in.b[l.r:l.w])
		l.r = 0
	}
	n, err := l.read(l.in.b[l.w:])
	l.w += n
	if n > 0 {
		return nil
	}
	return noEOF(err)
}

func (l *link) read(p []byte) (int, error) {
	if l.raw.ok() {
		return l.raw.read(p)
	}
	return l.conn.Read(p)
}

func (l *link) fillIdle() error {
	if l.raw.ok() {
		return l.raw.fill()
	}
	l.dropInput()
	n, err := l.conn.Read(l.single[:])
	if n == 0 {
		return err
	}
	l.in = getBuffer(chunkSize)
	l.w = copy(l.in.b, l.single[:n])
	return nil
}

// resume is called by the reader when it has input.
func (l *link) resume() {
	l.mu.Lock()
	l.held++
	l.told = l.batches
	l.mu.Unlock()
	for _, b := range l.told {
		b.hold()
	}
}

// pause is called by the reader when it has none.
func (l *link) pause() {
	for _, b := range l.told {
		b.release()
	}
	l.told = nil
	l.release()
}

// hold tells that who calls will release.
func (l *link) hold() {
	l.mu.Lock()
	l.held++
	l.mu.Unlock()
}

// release writes what hold has held back.
func (l *link) release() {
	l.mu.Lock()
	l.held--
	l.flush()
}

// watch has b told from the next input on.
func (l *link) watch(b *batch) (stop func()) {
	l.mu.Lock()
	l.batches = append(slices.Clone(l.batches), b)
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		l.batches = slices.DeleteFunc(slices.Clone(l.batches), func(o *batch) bool { return o == b })
		l.mu.Unlock()
	}
}

// reserve queues a message of n bytes, at most chunkSize, for the caller to
// fill in. mu is held.
func (l *link) reserve(n int) []byte {
	l.count(n)
	if len(l.queue) > l.head {
		if b := l.queue[len(l.queue)-1]; b.shared && len(b.b)-b.hi >= n {
			b.hi += n
			return b.b[b.hi-n : b.hi]
		}
	}
	b := getBuffer(chunkSize)
	b.hi, b.shared = n, true
	l.push(b)
	return b.b[:n]
}

// send queues b.b[b.lo:b.hi] and takes b over. mu is held.
func (l *link) send(b *buffer) {
	if n := b.hi - b.lo; n <= copyMax {
		copy(l.reserve(n), b.b[b.lo:b.hi])
		b.free()
		return
	}
	l.enqueue(b)
}

// enqueue queues b as it is.
func (l *link) enqueue(b *buffer) {
	l.count(b.hi - b.lo)
	l.push(b)
}

// push moves the queue down before it would grow: it need not ever be empty.
func (l *link) push(b *buffer) {
	if l.head > 0 && len(l.queue) == cap(l.queue) {
		l.queue = slices.Delete(l.queue, 0, l.head)
		l.head = 0
	}
	l.queue = append(l.queue, b)
}

func (l *link) count(n int) {
	if l.queued += n; l.queued > l.limits.Bytes+slack {
		l.failLocked(errNotReading)
	}
}

func (l *link) pop() *buffer {
	b := l.queue[l.head]
	l.queue[l.head] = nil
	if l.head++; l.head == len(l.queue) {
		l.queue, l.head = l.queue[:0], 0
	}
	return b
}

// flush writes what is queued as far as the socket takes it. It is called
// with mu held and gives it up.
func (l *link) flush() {
	defer l.mu.Unlock()
	if l.held > 0 || l.writing || l.err != nil || l.head == len(l.queue) {
		return
	}
	l.writing = true
	l.active.Add(1)
	for b := l.pop(); b != nil; b = l.nextToWrite() {
		n := b.hi - b.lo
		more := b.shared && l.head < len(l.queue) && !l.queue[l.head].shared
		l.mu.Unlock()
		err := l.raw.write(b, more)
		l.mu.Lock()
		if err == nil && b.lo < b.hi {
			l.queued -= n - (b.hi - b.lo)
			l.stalled = b
			go l.drainFunc()
			return
		}
		l.written(b, n, err)
	}
}

// written takes note that b, of n bytes, has gone, or could not go. mu is held.
func (l *link) written(b *buffer, n int, err error) {
	l.queued -= n
	if b.class == noClass {
		l.sent.Broadcast()
	}
	b.free()
	if err != nil {
		l.failLocked(err)
	}
}

// nextToWrite returns nil when the caller is no longer the one who writes. mu
// is held.
func (l *link) nextToWrite() *buffer {
	if l.err == nil && l.head < len(l.queue) {
		return l.pop()
	}
	l.writing = false
	l.active.Done()
	return nil
}

// drain waits for the socket to take what stalled and all that has come behind
// it.
func (l *link) drain() {
	for b := l.stalled; b != nil; {
		n := b.hi - b.lo
		err := l.writeAll(b)
		l.mu.Lock()
		l.written(b, n, err)
		b = l.nextToWrite()
		l.mu.Unlock()
	}
}

// writeAll waits for the peer to take b, a piece at a time so that a slow one
// is told from one that does not read.
func (l *link) writeAll(b *buffer) error {
	for b.lo < b.hi {
		l.conn.SetWriteDeadline(time.Now().Add(l.limits.WriteTimeout))
		err := l.writePiece(b, min(b.hi, b.lo+pieceMax))
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return fmt.Errorf("%w within %v", errNotReading, l.limits.WriteTimeout)
		}
		if err != nil {
			return err
		}
	}
	// It must not be in the way of who writes next.
	l.conn.SetWriteDeadline(time.Time{})
	return nil
}

func (l *link) writePiece(b *buffer, end int) error {
	if l.raw.ok() {
		return l.raw.writeAll(b, end)
	}
	n, err := l.conn.Write(b.b[b.lo:end])
	b.lo += n
	return err
}
