package main

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The wire carries everything from the guest to the host, in order: frames of a
// kind, a length and data. It ends with an exit frame, upon which the host kills
// QEMU. The guest cannot end QEMU itself: a write to the wire returns before
// QEMU has taken the data.
const (
	wireName = "vmexec" // of the virtio-serial port

	outputFrame = 'o' // what the test prints
	resultFrame = 'r' // a part of a tar archive of spec.Results
	exitFrame   = 'x' // the test's exit status, a byte

	frameHead = 5
	frameMax  = 32 << 10 // what the guest's driver takes at once, with the head
)

// A frameWriter writes data as frames of one kind.
type frameWriter struct {
	w    io.Writer
	kind byte
}

func (f frameWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+frameMax-frameHead)]
		frame := binary.BigEndian.AppendUint32([]byte{f.kind}, uint32(len(part)))
		if _, err := f.w.Write(append(frame, part...)); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// readFrames reads a wire to its exit frame.
func readFrames(r io.Reader, output, results io.Writer) (status int, err error) {
	buf := make([]byte, frameMax)
	for {
		if _, err := io.ReadFull(r, buf[:frameHead]); err != nil {
			return 0, err
		}
		kind, size := buf[0], binary.BigEndian.Uint32(buf[1:])
		if size > frameMax-frameHead {
			return 0, fmt.Errorf("a frame of %d bytes from the guest", size)
		}
		data := buf[:size]
		if _, err := io.ReadFull(r, data); err != nil {
			return 0, err
		}
		switch {
		case kind == outputFrame:
			_, err = output.Write(data)
		case kind == resultFrame:
			_, err = results.Write(data)
		case kind == exitFrame && size == 1:
			return int(data[0]), nil
		default:
			err = fmt.Errorf("a frame of kind %q and %d bytes from the guest", kind, size)
		}
		if err != nil {
			return 0, err
		}
	}
}
