package emulate

import "encoding/binary"

// SCSI operation codes (SPC-4, table D.2) that a disk knows.
const (
	scsiTestUnitReady    = 0x00
	scsiRequestSense     = 0x03
	scsiInquiry          = 0x12
	scsiModeSense6       = 0x1a
	scsiStartStopUnit    = 0x1b
	scsiPreventRemoval   = 0x1e
	scsiReadCapacity10   = 0x25
	scsiRead10           = 0x28
	scsiWrite10          = 0x2a
	scsiVerify10         = 0x2f
	scsiSynchronizeCache = 0x35
	scsiModeSense10      = 0x5a
	scsiRead16           = 0x88
	scsiWrite16          = 0x8a
	scsiServiceActionIn  = 0x9e // with action 0x10: READ CAPACITY(16)
)

// A sense says why a command failed: key and additional code (SPC-4, section
// 4.5). The zero sense is that of success.
type sense struct{ key, code byte }

var (
	senseReadError      = sense{0x03, 0x11}
	senseWriteError     = sense{0x03, 0x0c}
	senseInvalidCommand = sense{0x05, 0x20}
	senseOutOfRange     = sense{0x05, 0x21}
	senseInvalidField   = sense{0x05, 0x24}
)

// fixed is sense data in the fixed format (SPC-4, section 4.5.3).
func (s sense) fixed() []byte {
	return []byte{0x70, 0, s.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, s.code, 0, 0, 0, 0, 0}
}

// A diskCommand is what a disk has to do for a command block.
type diskCommand struct {
	sense  sense // of a command that is refused; nothing else counts then
	answer []byte
	// Blocks to read or to write: where, and how many bytes.
	read, write    bool
	offset, length int64
	sync           bool
}

func refuse(s sense) diskCommand { return diskCommand{sense: s} }

func answer(b []byte, allocated int) diskCommand {
	return diskCommand{answer: b[:min(len(b), allocated)]}
}

// scsiUnit is what the commands need to know of a disk.
type scsiUnit struct {
	blocks int64
	serial string
	last   sense // of the last command
}

// parse makes sense of a command block, which has as many bytes as its operation
// code demands, or is refused.
func (d *scsiUnit) parse(cb [16]byte, n int) diskCommand {
	if n < scsiLength(cb[0]) {
		return refuse(senseInvalidField)
	}
	be16, be32, be64 := binary.BigEndian.Uint16, binary.BigEndian.Uint32, binary.BigEndian.Uint64
	switch cb[0] {
	case scsiTestUnitReady, scsiStartStopUnit, scsiPreventRemoval:
		return diskCommand{}
	case scsiVerify10:
		if cb[1]&0x06 != 0 { // compare with data to come
			return refuse(senseInvalidField)
		}
		return diskCommand{}
	case scsiRequestSense:
		return answer(d.last.fixed(), int(cb[4]))
	case scsiInquiry:
		return d.inquiry(cb)
	case scsiModeSense6:
		return d.modeSense(cb, 4, int(cb[4]))
	case scsiModeSense10:
		return d.modeSense(cb, 8, int(be16(cb[7:])))
	case scsiReadCapacity10:
		return answer(d.capacity10(), 8)
	case scsiServiceActionIn:
		if cb[1]&0x1f != 0x10 {
			return refuse(senseInvalidField)
		}
		return answer(d.capacity16(), int(min(be32(cb[10:]), 0xffff)))
	case scsiRead10, scsiWrite10:
		return d.move(cb[0] == scsiRead10, uint64(be32(cb[2:])), uint32(be16(cb[7:])))
	case scsiRead16, scsiWrite16:
		return d.move(cb[0] == scsiRead16, be64(cb[2:]), be32(cb[10:]))
	case scsiSynchronizeCache:
		return diskCommand{sync: true}
	}
	return refuse(senseInvalidCommand)
}

// scsiLength follows from the group in the upper bits of the operation code.
func scsiLength(code byte) int {
	switch code >> 5 {
	case 0:
		return 6
	case 1, 2:
		return 10
	case 4:
		return 16
	}
	return 0
}

func (d *scsiUnit) move(read bool, block uint64, count uint32) diskCommand {
	if block > uint64(d.blocks) || uint64(count) > uint64(d.blocks)-block {
		return refuse(senseOutOfRange)
	}
	return diskCommand{
		read: read, write: !read,
		offset: int64(block) * DiskBlock, length: int64(count) * DiskBlock,
	}
}

func (d *scsiUnit) inquiry(cb [16]byte) diskCommand {
	allocated := int(binary.BigEndian.Uint16(cb[3:]))
	vital, page := cb[1]&1 != 0, cb[2]
	switch {
	case !vital && page == 0:
		// A disk that stays in, SPC-2, 31 more bytes.
		b := append([]byte{0, 0, 4, 2, 31, 0, 0, 0}, "usbns   disk            0100"...)
		return answer(b, allocated)
	case vital && page == 0x00: // the list of pages
		return answer([]byte{0, 0x00, 0, 2, 0x00, 0x80}, allocated)
	case vital && page == 0x80: // serial number
		b := append([]byte{0, 0x80, 0, byte(min(len(d.serial), 255))}, d.serial[:min(len(d.serial), 255)]...)
		return answer(b, allocated)
	}
	return refuse(senseInvalidField)
}

// modeSense knows one page, that of the cache (SBC-3, section 6.4.5): data that
// was written is safe after SYNCHRONIZE CACHE.
func (d *scsiUnit) modeSense(cb [16]byte, head, allocated int) diskCommand {
	b := make([]byte, head)
	switch cb[2] & 0x3f {
	case 0x08, 0x3f:
		caching := [20]byte{0x08, 18, 0x04}
		if cb[2]>>6 == 1 { // which bits can be changed: none
			caching[2] = 0
		}
		b = append(b, caching[:]...)
	default:
		return refuse(senseInvalidField)
	}
	if head == 4 {
		b[0] = byte(len(b) - 1)
	} else {
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	}
	return answer(b, allocated)
}

func (d *scsiUnit) capacity10() []byte {
	last := uint32(min(d.blocks-1, 0xffffffff)) // the greatest means: ask for 16
	b := binary.BigEndian.AppendUint32(nil, last)
	return binary.BigEndian.AppendUint32(b, DiskBlock)
}

func (d *scsiUnit) capacity16() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(d.blocks-1))
	b = binary.BigEndian.AppendUint32(b, DiskBlock)
	return append(b, make([]byte, 20)...)
}
