package emulate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/usbns/usbns/usb"
)

const (
	diskOut = usb.Address(0x01)
	diskIn  = usb.Address(0x81)
)

// Codes of the mass storage class, bulk-only transport (BBB 1.0).
const (
	classStorage     = 0x08
	storageSCSI      = 0x06 // subclass
	storageBulkOnly  = 0x50 // protocol
	storageReset     = 0xff // requests
	storageGetMaxLUN = 0xfe

	cbwSize = 31
	cswSize = 13

	cswPassed     = 0
	cswFailed     = 1
	cswPhaseError = 2
)

const (
	// DiskBlock is the size of a block in bytes.
	DiskBlock = 512
	// diskPiece is how much is read or written at once.
	diskPiece = 256 << 10
	// diskMemory is the size of a disk that is not made of a file.
	diskMemory = 64 << 20
)

// DiskStorage holds what is on a disk. If it has a method Sync, as an [os.File]
// has, that is called when the host wants data to be safe; if it has a method
// Close, that is called when the disk is closed. A slow one holds up nobody but
// the disk's own host.
type DiskStorage interface {
	io.ReaderAt
	io.WriterAt
}

// A Disk is a disk on the bulk-only transport of the mass storage class.
type Disk struct {
	*Device
	storage    DiskStorage
	background sync.WaitGroup // what works on storage

	mu     sync.Mutex
	unit   scsiUnit
	phase  diskPhase
	wedged bool // nothing goes on before a reset: a command block made no sense

	// The command that is worked on.
	tag    uint32
	want   int64 // bytes the host will move
	moved  int64 // bytes it has moved
	left   int64 // bytes the disk has still to move
	status byte
	next   int64  // where in storage the next piece is
	piece  []byte // read and not sent yet, or received and not written yet
	buffer *diskBuffer
	busy   bool // storage is at work
	epoch  int  // of resets: what storage does for an earlier one is dropped
}

// A diskPhase is what the disk will do next.
type diskPhase uint8

const (
	diskCommandPhase diskPhase = iota // take a command block
	diskInPhase                       // send data, and refuse to when nothing is left
	diskOutPhase                      // take data, or refuse to
	diskSyncPhase                     // wait for storage
	diskStatusPhase                   // send the status
)

// NewDisk makes a disk of what storage holds in its first size bytes, a multiple
// of [DiskBlock]. It runs at high speed unless the options say otherwise.
func NewDisk(o Options, storage DiskStorage, size int64) (*Disk, error) {
	if size <= 0 || size%DiskBlock != 0 {
		return nil, fmt.Errorf("%d bytes do not make a disk: it takes a multiple of %d", size, DiskBlock)
	}
	speed, err := o.speed(usb.SpeedHigh, usb.SpeedFull)
	if err != nil {
		return nil, err
	}
	bulk, burst := bulkPacket(speed), uint8(15)
	describe := o.describe(productDisk, "usbns disk")
	describe.Configurations = []Configuration{{
		MilliAmps: 200,
		Interfaces: []Interface{{
			Class: classStorage, SubClass: storageSCSI, Protocol: storageBulkOnly,
			Endpoints: []Endpoint{
				{Address: diskIn, Type: usb.Bulk, MaxPacket: bulk, Burst: burst},
				{Address: diskOut, Type: usb.Bulk, MaxPacket: bulk, Burst: burst},
			},
		}},
	}}
	desc, err := describe.Build(speed)
	if err != nil {
		return nil, err
	}
	d := &Disk{storage: storage, unit: scsiUnit{blocks: size / DiskBlock, serial: describe.SerialNumber}}
	d.Device, err = New(Config{
		Speed:       speed,
		Descriptors: desc,
		Control:     d.control,
		Endpoints:   map[usb.Address]Handler{diskIn: d.in, diskOut: d.out},
		Changed:     d.reset,
	})
	return d, err
}

// openDisk makes a disk of a file, or of 64 MiB of memory.
func openDisk(o Options) (usb.Device, error) {
	if o.File == "" {
		return NewDisk(o, make(memory, diskMemory), diskMemory)
	}
	f, err := os.OpenFile(o.File, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	d, err := newFileDisk(o, f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	return d, nil
}

func newFileDisk(o Options, f *os.File) (*Disk, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return NewDisk(o, f, info.Size())
}

// memory is storage that is gone with the disk.
type memory []byte

func (m memory) ReadAt(b []byte, offset int64) (int, error)  { return copy(b, m[offset:]), nil }
func (m memory) WriteAt(b []byte, offset int64) (int, error) { return copy(m[offset:], b), nil }

// Close implements [usb.Device]. It waits for the storage and closes it, and so
// must not be called from a Complete function.
func (d *Disk) Close() error {
	d.Device.Close()
	<-d.Gone()
	d.background.Wait()
	c, ok := d.storage.(io.Closer)
	if !ok {
		return nil
	}
	if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close disk: %w", err)
	}
	return nil
}

func (d *Disk) control(u *usb.URB) (done bool) {
	const toInterface = usb.KindClass | usb.ToInterface
	switch r := u.Setup; {
	case r.Index != 0 || r.Value != 0:
		return Stall(u)
	case r.Is(usb.DirIn|toInterface, storageGetMaxLUN):
		return Reply(u, []byte{0})
	case r.Is(toInterface, storageReset) && r.Length == 0:
		d.reset()
		return Accept(u)
	}
	return Stall(u)
}

func (d *Disk) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epoch++
	if !d.busy { // or else the buffer is in use
		d.release()
	}
	d.phase, d.wedged, d.unit.last = diskCommandPhase, false, sense{}
	d.Wake(diskOut)
}

// in sends data and status.
func (d *Disk) in(u *usb.URB) (done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.wedged:
		return Stall(u)
	case d.phase == diskInPhase:
		return d.sendData(u)
	case d.phase == diskStatusPhase:
		return d.sendStatus(u)
	}
	return false
}

// out takes commands and data.
func (d *Disk) out(u *usb.URB) (done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.wedged:
		return Stall(u)
	case d.phase == diskCommandPhase:
		return d.takeCommand(u)
	case d.phase == diskOutPhase:
		return d.takeData(u)
	}
	return false
}

// takeCommand takes a command block wrapper (BBB 1.0, section 5.1). One that
// makes no sense stalls both endpoints until a reset (section 6.6.1).
func (d *Disk) takeCommand(u *usb.URB) (done bool) {
	if d.busy { // with the command before a reset
		return false
	}
	b := u.Buffer
	if len(b) != cbwSize || string(b[:4]) != "USBC" || b[13]&0x0f != 0 || b[14] == 0 || b[14] > 16 {
		d.wedged = true
		d.Wake(diskIn)
		return Stall(u)
	}
	d.tag, d.want = binary.LittleEndian.Uint32(b[4:]), int64(binary.LittleEndian.Uint32(b[8:]))
	d.start(d.unit.parse([16]byte(b[15:]), int(b[14])), b[12]&usb.DirIn != 0)
	d.Wake(diskIn)
	return Accept(u)
}

// start sets the phases of a command by what the host and the disk expect of
// each other (BBB 1.0, section 6.7).
func (d *Disk) start(c diskCommand, hostIn bool) {
	d.unit.last = c.sense
	d.next, d.piece = c.offset, c.answer
	d.moved, d.left, d.status = 0, int64(len(c.answer)), cswPassed
	if c.read || c.write {
		d.left = c.length
		d.acquire()
	}
	contrary := d.left > 0 && hostIn == c.write
	switch {
	case c.sense != sense{}:
		d.status = cswFailed
	case contrary || d.left > d.want:
		d.status = cswPhaseError
	}
	if d.left = min(d.left, d.want); contrary {
		d.left = 0
	}
	switch {
	case d.want == 0:
		d.phase = diskStatusPhase
	case hostIn:
		d.phase = diskInPhase
	default:
		d.phase = diskOutPhase
	}
	if c.sync {
		d.work(d.sync(d.phase))
		d.phase = diskSyncPhase
	}
}

// sendData sends what is left. A host that wants more is told by a short
// transfer, or by a stall when the last one was just full.
func (d *Disk) sendData(u *usb.URB) (done bool) {
	if d.left == 0 {
		d.endData()
		return Stall(u)
	}
	n := copy(u.Buffer[u.Actual:], d.piece)
	d.piece = d.piece[n:]
	u.Actual += n
	d.moved += int64(n)
	d.left -= int64(n)
	full := u.Actual == len(u.Buffer)
	switch {
	case d.left == 0:
		if !full || d.moved == d.want {
			d.endData()
		}
		return true
	case full:
		return true
	}
	if !d.busy {
		d.work(d.fetch())
	}
	return false
}

// takeData takes what is left, and refuses the rest.
func (d *Disk) takeData(u *usb.URB) (done bool) {
	for u.Actual < len(u.Buffer) {
		switch {
		case d.busy:
			return false
		case d.left == 0:
			d.endData()
			return Stall(u)
		}
		rest := u.Buffer[u.Actual:]
		n := min(len(rest), diskPiece-len(d.piece), int(min(d.left, diskPiece)))
		d.piece = append(d.piece, rest[:n]...)
		u.Actual += n
		d.moved += int64(n)
		d.left -= int64(n)
		if len(d.piece) == diskPiece || d.left == 0 {
			d.work(d.store())
		}
	}
	return true
}

func (d *Disk) endData() {
	d.phase = diskStatusPhase
	d.Wake(diskIn)
}

// sendStatus sends the command status wrapper (BBB 1.0, section 5.2).
func (d *Disk) sendStatus(u *usb.URB) (done bool) {
	b := append(make([]byte, 0, cswSize), "USBS"...)
	b = binary.LittleEndian.AppendUint32(b, d.tag)
	b = binary.LittleEndian.AppendUint32(b, uint32(d.want-d.moved))
	b = append(b, d.status)
	d.phase = diskCommandPhase
	d.release()
	d.Wake(diskOut)
	return Reply(u, b)
}
