package emulate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/usbns/usbns/usb"
)

// faultyStorage fails where it is told to.
type faultyStorage struct {
	memory
	readError, writeError, syncError error
	synced, closed                   int
}

func (s *faultyStorage) ReadAt(b []byte, offset int64) (int, error) {
	if s.readError != nil {
		return 0, s.readError
	}
	return s.memory.ReadAt(b, offset)
}

func (s *faultyStorage) WriteAt(b []byte, offset int64) (int, error) {
	if s.writeError != nil {
		return 0, s.writeError
	}
	return s.memory.WriteAt(b, offset)
}

func (s *faultyStorage) Sync() error  { s.synced++; return s.syncError }
func (s *faultyStorage) Close() error { s.closed++; return nil }

const testBlocks = 4096

func newTestDisk(t *testing.T) (*Disk, *faultyStorage) {
	t.Helper()
	s := &faultyStorage{memory: make(memory, testBlocks*DiskBlock)}
	rand.NewChaCha8([32]byte{9}).Read(s.memory)
	d, err := NewDisk(Options{}, s, int64(len(s.memory)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	mustControl(t, d, usb.SetConfiguration(1), nil)
	return d, s
}

// A diskResult is how a command went, as a host sees it.
type diskResult struct {
	status  byte
	residue int
	stalled bool // the data phase
	data    []byte
}

var diskTag uint32

// do makes the three phases of a command with transfers of at most chunk bytes,
// as a host does that clears a stall and asks for the status.
func (d *Disk) do(t *testing.T, cb []byte, in bool, want int, data []byte, chunk int) diskResult {
	t.Helper()
	diskTag++
	cbw := append(make([]byte, 0, cbwSize), "USBC"...)
	cbw = binary.LittleEndian.AppendUint32(cbw, diskTag)
	cbw = binary.LittleEndian.AppendUint32(cbw, uint32(want))
	direction := byte(0)
	if in {
		direction = usb.DirIn
	}
	cbw = append(cbw, direction, 0, byte(len(cb)))
	cbw = append(cbw, cb...)
	mustMove(t, d, diskOut, usb.Bulk, cbw[:cbwSize])
	r := d.dataPhase(t, in, want, data, chunk)
	csw := mustMove(t, d, diskIn, usb.Bulk, make([]byte, cswSize))
	if len(csw) != cswSize || string(csw[:4]) != "USBS" || binary.LittleEndian.Uint32(csw[4:]) != diskTag {
		t.Fatalf("status wrapper % x", csw)
	}
	r.residue, r.status = int(binary.LittleEndian.Uint32(csw[8:])), csw[12]
	return r
}

func (d *Disk) dataPhase(t *testing.T, in bool, want int, data []byte, chunk int) (r diskResult) {
	t.Helper()
	for moved := 0; moved < want; {
		u := usb.URB{Endpoint: diskOut, Type: usb.Bulk}
		if in {
			u.Endpoint, u.Buffer = diskIn, make([]byte, min(chunk, want-moved))
		} else {
			u.Buffer = data[moved:min(len(data), moved+chunk)]
		}
		err := usb.Do(t.Context(), d, &u)
		if in {
			r.data = append(r.data, u.Buffer[:u.Actual]...)
		}
		switch {
		case errors.Is(err, usb.StatusStall.Err()):
			r.stalled = true
			mustControl(t, d, usb.ClearHalt(u.Endpoint), nil)
			return r
		case err != nil:
			t.Fatal(err)
		case u.Actual < len(u.Buffer):
			return r
		}
		moved += u.Actual
	}
	return r
}

func read10(block uint32, count uint16) []byte { return block10(scsiRead10, block, count) }

func block10(code byte, block uint32, count uint16) []byte {
	b := make([]byte, 10, 16)
	b[0] = code
	binary.BigEndian.PutUint32(b[2:], block)
	binary.BigEndian.PutUint16(b[7:], count)
	return b[:16]
}

func block16(code byte, block uint64, count uint32) []byte {
	b := make([]byte, 16)
	b[0] = code
	binary.BigEndian.PutUint64(b[2:], block)
	binary.BigEndian.PutUint32(b[10:], count)
	return b
}

func cdb(b ...byte) []byte { return append(b, make([]byte, 16-len(b))...) }

// lastSense asks why the last command failed.
func (d *Disk) lastSense(t *testing.T) sense {
	t.Helper()
	r := d.do(t, cdb(scsiRequestSense, 0, 0, 0, 18), true, 18, nil, 18)
	if r.status != cswPassed || len(r.data) != 18 || r.data[0] != 0x70 {
		t.Fatalf("request sense: %+v", r)
	}
	return sense{r.data[2], r.data[12]}
}

func TestDiskReadsAndWrites(t *testing.T) {
	d, s := newTestDisk(t)
	for _, c := range []struct {
		block, count, chunk int
	}{
		{0, 1, 512},
		{7, 3, 4096},
		{testBlocks - 1, 1, 512},
		{0, 2048, 120 << 10},
		{1, 1500, 16 << 10},
		{3, 513, 1 << 20}, // more than a piece
	} {
		n := c.count * DiskBlock
		want := bytes.Clone(s.memory[c.block*DiskBlock:][:n])
		r := d.do(t, read10(uint32(c.block), uint16(c.count)), true, n, nil, c.chunk)
		if r.status != cswPassed || r.residue != 0 || !bytes.Equal(r.data, want) {
			t.Errorf("read %+v: status %d, residue %d, %d bytes", c, r.status, r.residue, len(r.data))
		}
		for i := range want {
			want[i] ^= 0x5a
		}
		for _, write := range [][]byte{block10(scsiWrite10, uint32(c.block), uint16(c.count)), block16(scsiWrite16, uint64(c.block), uint32(c.count))} {
			r = d.do(t, write, false, n, want, c.chunk)
			if r.status != cswPassed || r.residue != 0 || !bytes.Equal(s.memory[c.block*DiskBlock:][:n], want) {
				t.Errorf("write %+v: status %d, residue %d", c, r.status, r.residue)
			}
		}
		r = d.do(t, block16(scsiRead16, uint64(c.block), uint32(c.count)), true, n, nil, c.chunk)
		if !bytes.Equal(r.data, want) {
			t.Errorf("%+v reads otherwise than it was written", c)
		}
	}
}

// The thirteen cases of what host and device expect (BBB 1.0, section 6.7), with
// a read or write of two blocks, or a command without data, on the side of the
// device.
func TestDiskThirteenCases(t *testing.T) {
	const two = 2 * DiskBlock
	none, read, write := cdb(scsiTestUnitReady), read10(0, 2), block10(scsiWrite10, 0, 2)
	for name, c := range map[string]struct {
		cb       []byte
		in       bool
		want     int
		expected diskResult
		moved    int
	}{
		"1 Hn=Dn":   {none, false, 0, diskResult{}, 0},
		"2 Hn<Di":   {read, true, 0, diskResult{status: cswPhaseError}, 0},
		"3 Hn<Do":   {write, false, 0, diskResult{status: cswPhaseError}, 0},
		"4 Hi>Dn":   {none, true, 512, diskResult{residue: 512, stalled: true}, 0},
		"5 Hi>Di":   {read, true, 2048, diskResult{residue: 1024}, two},
		"6 Hi=Di":   {read, true, two, diskResult{}, two},
		"7 Hi<Di":   {read, true, 512, diskResult{status: cswPhaseError}, 512},
		"8 Hi<>Do":  {write, true, two, diskResult{status: cswPhaseError, residue: two, stalled: true}, 0},
		"9 Ho>Dn":   {none, false, 512, diskResult{residue: 512, stalled: true}, 0},
		"10 Ho<>Di": {read, false, two, diskResult{status: cswPhaseError, residue: two, stalled: true}, 0},
		"11 Ho>Do":  {write, false, 2048, diskResult{residue: 1024, stalled: true}, 0},
		"12 Ho=Do":  {write, false, two, diskResult{}, 0},
		"13 Ho<Do":  {write, false, 512, diskResult{status: cswPhaseError}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d, s := newTestDisk(t)
			before := bytes.Clone(s.memory[:two])
			r := d.do(t, c.cb, c.in, c.want, make([]byte, c.want), 4096)
			data := r.data
			r.data = nil
			if r.status != c.expected.status || r.residue != c.expected.residue || r.stalled != c.expected.stalled {
				t.Errorf("%+v, want %+v", r, c.expected)
			}
			if !bytes.Equal(data, before[:c.moved]) {
				t.Errorf("%d bytes of data, want %d of the disk", len(data), c.moved)
			}
			if r := d.do(t, none, false, 0, nil, 0); r.status != cswPassed {
				t.Errorf("the next command: status %d", r.status)
			}
		})
	}
}

// A host whose transfers end where the data does is told by a stall that there
// is no more.
func TestDiskStallsAfterAFullTransfer(t *testing.T) {
	d, s := newTestDisk(t)
	r := d.do(t, read10(0, 2), true, 2048, nil, 1024)
	if !r.stalled || r.status != cswPassed || r.residue != 1024 || !bytes.Equal(r.data, s.memory[:1024]) {
		t.Errorf("status %d, residue %d, stalled %v, %d bytes", r.status, r.residue, r.stalled, len(r.data))
	}
}

func TestDiskAnswers(t *testing.T) {
	d, _ := newTestDisk(t)
	for name, c := range map[string]struct {
		cb   []byte
		n    int
		want []byte
	}{
		"inquiry":           {cdb(scsiInquiry, 0, 0, 0, 36), 36, append([]byte{0, 0, 4, 2, 31, 0, 0, 0}, "usbns   disk            0100"...)},
		"start of inquiry":  {cdb(scsiInquiry, 0, 0, 0, 5), 5, []byte{0, 0, 4, 2, 31}},
		"pages":             {cdb(scsiInquiry, 1, 0, 0, 255), 255, []byte{0, 0, 0, 2, 0, 0x80}},
		"serial number":     {cdb(scsiInquiry, 1, 0x80, 0, 255), 255, []byte{0, 0x80, 0, 4, '0', '0', '0', '1'}},
		"capacity":          {cdb(scsiReadCapacity10), 8, []byte{0, 0, 0x0f, 0xff, 0, 0, 2, 0}},
		"capacity, 16":      {cdb(scsiServiceActionIn, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12), 12, []byte{0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0}},
		"capacity, 16, all": {cdb(scsiServiceActionIn, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff), 32, append([]byte{0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0}, make([]byte, 20)...)},
		"cache":             {cdb(scsiModeSense6, 0, 0x08, 0, 192), 192, append([]byte{23, 0, 0, 0, 8, 18, 4}, make([]byte, 17)...)},
		"all pages":         {cdb(scsiModeSense6, 0, 0x3f, 0, 4), 4, []byte{23, 0, 0, 0}},
		"cache, changeable": {cdb(scsiModeSense6, 0, 0x48, 0, 7), 7, []byte{23, 0, 0, 0, 8, 18, 0}},
		"cache, 10":         {cdb(scsiModeSense10, 0, 0x08, 0, 0, 0, 0, 0, 10), 10, []byte{0, 26, 0, 0, 0, 0, 0, 0, 8, 18}},
	} {
		r := d.do(t, c.cb, true, c.n, nil, c.n)
		if r.status != cswPassed || !bytes.Equal(r.data, c.want) || r.residue != c.n-len(c.want) {
			t.Errorf("%s: status %d, residue %d, % x; want % x", name, r.status, r.residue, r.data, c.want)
		}
	}
	if b := (&scsiUnit{blocks: 1 << 33}).capacity10(); !bytes.Equal(b[:4], []byte{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("capacity of 4 TiB: % x", b)
	}
}

func TestDiskRefuses(t *testing.T) {
	d, _ := newTestDisk(t)
	for name, c := range map[string]struct {
		cb   []byte
		want sense
	}{
		"unknown command":   {cdb(0x04), senseInvalidCommand},
		"unknown group":     {cdb(0xff), senseInvalidCommand},
		"past the end":      {read10(testBlocks, 1), senseOutOfRange},
		"over the end":      {read10(testBlocks-1, 2), senseOutOfRange},
		"number that wraps": {block16(scsiRead16, 1<<63, 1<<31), senseOutOfRange},
		"unknown mode page": {cdb(scsiModeSense6, 0, 0x01, 0, 4), senseInvalidField},
		"unknown inquiry":   {cdb(scsiInquiry, 1, 0x83, 0, 4), senseInvalidField},
		"page without bit":  {cdb(scsiInquiry, 0, 0x80, 0, 4), senseInvalidField},
		"compare":           {cdb(scsiVerify10, 2), senseInvalidField},
		"service action":    {cdb(scsiServiceActionIn, 0x11), senseInvalidField},
		"short command":     {read10(0, 1)[:9], senseInvalidField},
	} {
		r := d.do(t, append(c.cb, make([]byte, 16-len(c.cb))...)[:max(len(c.cb), 1)], true, 512, nil, 512)
		if r.status != cswFailed || r.residue != 512 || !r.stalled {
			t.Errorf("%s: %+v", name, r)
		}
		if got := d.lastSense(t); got != c.want {
			t.Errorf("%s: sense %+v, want %+v", name, got, c.want)
		}
		if got := d.lastSense(t); got != (sense{}) {
			t.Errorf("%s: sense %+v is told twice", name, got)
		}
	}
}

func TestDiskPassesErrorsOn(t *testing.T) {
	d, s := newTestDisk(t)
	broken := errors.New("broken")
	s.readError = broken
	if r := d.do(t, read10(0, 8), true, 4096, nil, 4096); r.status != cswFailed || !r.stalled || r.residue != 4096 {
		t.Errorf("read: %+v", r)
	}
	if got := d.lastSense(t); got != senseReadError {
		t.Errorf("read: sense %+v", got)
	}
	s.readError, s.writeError = nil, broken
	if r := d.do(t, block10(scsiWrite10, 0, 8), false, 4096, make([]byte, 4096), 4096); r.status != cswFailed || r.stalled {
		t.Errorf("write: %+v", r)
	}
	if got := d.lastSense(t); got != senseWriteError {
		t.Errorf("write: sense %+v", got)
	}
	const long = 4 * diskPiece // fails while the host still sends
	if r := d.do(t, block10(scsiWrite10, 0, long/DiskBlock), false, long, make([]byte, long), diskPiece); r.status != cswFailed || !r.stalled || r.residue == 0 {
		t.Errorf("long write: %+v", r)
	}
	s.writeError, s.syncError = nil, broken
	if r := d.do(t, cdb(scsiSynchronizeCache), false, 0, nil, 0); r.status != cswFailed || s.synced != 1 {
		t.Errorf("sync: %+v, called %d times", r, s.synced)
	}
	s.syncError = nil
	if r := d.do(t, cdb(scsiSynchronizeCache), false, 0, nil, 0); r.status != cswPassed || s.synced != 2 {
		t.Errorf("sync: %+v, called %d times", r, s.synced)
	}
}

// A command block that makes no sense stops everything until the host has reset
// the disk and cleared both halts.
func TestDiskStopsAtNonsense(t *testing.T) {
	good := append([]byte("USBC\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x06"), make([]byte, 16)...)
	spoil := func(i int, v byte) []byte {
		b := bytes.Clone(good)
		b[i] = v
		return b
	}
	for name, cbw := range map[string][]byte{
		"signature": spoil(3, 'S'), "unit": spoil(13, 1), "no command": spoil(14, 0), "long command": spoil(14, 17),
		"short": good[:30], "long": append(bytes.Clone(good), 0), "empty": {},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := newTestDisk(t)
			stalls := func(a usb.Address, b []byte) {
				t.Helper()
				u := usb.URB{Endpoint: a, Type: usb.Bulk, Buffer: b}
				if err := usb.Do(t.Context(), d, &u); !errors.Is(err, usb.StatusStall.Err()) {
					t.Errorf("%v: %v, want a stall", a, err)
				}
				mustControl(t, d, usb.ClearHalt(a), nil)
			}
			stalls(diskOut, cbw)
			stalls(diskIn, make([]byte, cswSize))
			stalls(diskOut, good)
			mustControl(t, d, usb.Setup{RequestType: usb.KindClass | usb.ToInterface, Request: storageReset}, nil)
			if r := d.do(t, cdb(scsiTestUnitReady), false, 0, nil, 0); r.status != cswPassed {
				t.Errorf("after a reset: %+v", r)
			}
		})
	}
}

// A reset in the middle of a command leaves the disk ready for another.
func TestDiskResetInMidCommand(t *testing.T) {
	d, s := newTestDisk(t)
	for range 50 {
		cbw := append([]byte("USBC\x01\x00\x00\x00\x00\x00\x08\x00\x80\x00\x0a"), read10(0, 1024)...)
		mustMove(t, d, diskOut, usb.Bulk, cbw[:cbwSize])
		u := usb.URB{Endpoint: diskIn, Type: usb.Bulk, Buffer: make([]byte, 512<<10)}
		done := begin(t, d.Device, &u)
		mustControl(t, d, usb.Setup{RequestType: usb.KindClass | usb.ToInterface, Request: storageReset}, nil)
		d.Cancel(&u)
		<-done
		r := d.do(t, read10(9, 1), true, 512, nil, 512)
		if r.status != cswPassed || !bytes.Equal(r.data, s.memory[9*512:][:512]) {
			t.Fatalf("after a reset: status %d, residue %d", r.status, r.residue)
		}
	}
}

// A storage that hangs is asked for nothing more, whatever the host does, and the
// disk goes on when it has answered.
func TestDiskWaitsForSlowStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStorage{memory: make(memory, DiskBlock), asked: make(chan struct{}, 10), answer: make(chan struct{})}
		d, err := NewDisk(Options{}, s, DiskBlock)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		mustControl(t, d, usb.SetConfiguration(1), nil)
		cbw := append([]byte("USBC\x01\x00\x00\x00\x00\x02\x00\x00\x80\x00\x0a"), read10(0, 1)...)[:cbwSize]
		mustMove(t, d, diskOut, usb.Bulk, cbw)
		for range 5 {
			in := usb.URB{Endpoint: diskIn, Type: usb.Bulk, Buffer: make([]byte, DiskBlock)}
			out := usb.URB{Endpoint: diskOut, Type: usb.Bulk, Buffer: cbw}
			a, b := begin(t, d.Device, &in), begin(t, d.Device, &out)
			synctest.Wait()
			if n := len(s.asked); n != 1 {
				t.Fatalf("storage was asked %d times", n)
			}
			if err := d.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-a
			<-b
			mustControl(t, d, usb.SetConfiguration(1), nil)
		}
		close(s.answer)
		if r := d.do(t, read10(0, 1), true, DiskBlock, nil, DiskBlock); r.status != cswPassed || len(r.data) != DiskBlock {
			t.Errorf("afterwards: status %d, %d bytes", r.status, len(r.data))
		}
	})
}

type slowStorage struct {
	memory
	asked, answer chan struct{}
}

func (s *slowStorage) ReadAt(b []byte, offset int64) (int, error) {
	s.asked <- struct{}{}
	<-s.answer
	return s.memory.ReadAt(b, offset)
}

func TestDiskOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	for size, want := range map[int64]bool{0: false, 511: false, 513: false, 1 << 20: true} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open("disk", Options{File: path})
		if (err == nil) != want {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err != nil {
			continue
		}
		mustControl(t, d, usb.SetConfiguration(1), nil)
		data := bytes.Repeat([]byte("usbns"), 1024)[:1024]
		if r := d.(*Disk).do(t, block10(scsiWrite10, 2, 2), false, 1024, data, 1024); r.status != cswPassed {
			t.Errorf("write: %+v", r)
		}
		if r := d.(*Disk).do(t, cdb(scsiSynchronizeCache), false, 0, nil, 0); r.status != cswPassed {
			t.Errorf("sync: %+v", r)
		}
		for range 2 {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) != 1<<20 || !bytes.Equal(b[1024:2048], data) {
			t.Errorf("the file does not hold what was written: %v", err)
		}
	}
}

func TestDiskClosesItsStorage(t *testing.T) {
	d, s := newTestDisk(t)
	if err := d.Close(); err != nil || s.closed != 1 {
		t.Errorf("%v, closed %d times", err, s.closed)
	}
}
