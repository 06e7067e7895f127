package emulate

import "sync"

// A diskBuffer holds the piece of data on its way to or from the storage, for as
// long as a command takes.
type diskBuffer [diskPiece]byte

var diskBuffers = sync.Pool{New: func() any { return new(diskBuffer) }}

func (d *Disk) acquire() {
	if d.buffer == nil {
		d.buffer = diskBuffers.Get().(*diskBuffer)
	}
	d.piece = d.buffer[:0]
}

func (d *Disk) release() {
	if d.buffer != nil {
		diskBuffers.Put(d.buffer)
	}
	d.buffer, d.piece = nil, nil
}

// A diskJob is work on the storage, prepared with mu held: what to do without
// it, and what to do afterwards with mu held again.
type diskJob struct {
	do   func() error
	then func(error)
}

// work has storage at work until the job is done.
func (d *Disk) work(job diskJob) {
	d.busy = true
	epoch := d.epoch
	d.background.Go(func() {
		err := job.do()
		d.mu.Lock()
		d.busy = false
		if epoch == d.epoch {
			job.then(err)
		} else {
			d.release()
		}
		d.mu.Unlock()
		d.Wake(diskIn)
		d.Wake(diskOut)
	})
}

// fetch reads the next piece.
func (d *Disk) fetch() diskJob {
	b, offset := d.buffer[:min(d.left, diskPiece)], d.next
	d.next += int64(len(b))
	return diskJob{
		func() error {
			if n, err := d.storage.ReadAt(b, offset); n < len(b) {
				return err
			}
			return nil
		},
		func(err error) {
			d.piece = b
			if err != nil {
				d.fail(senseReadError)
			}
		},
	}
}

// store writes what was received.
func (d *Disk) store() diskJob {
	b, offset := d.piece, d.next
	d.next += int64(len(b))
	return diskJob{
		func() error {
			_, err := d.storage.WriteAt(b, offset)
			return err
		},
		func(err error) {
			d.piece = b[:0]
			if err != nil {
				d.fail(senseWriteError)
			}
			if d.left == 0 && d.moved == d.want {
				d.phase = diskStatusPhase
			}
		},
	}
}

// sync makes safe what was written, and goes on with a phase.
func (d *Disk) sync(next diskPhase) diskJob {
	return diskJob{
		func() error {
			if s, ok := d.storage.(interface{ Sync() error }); ok {
				return s.Sync()
			}
			return nil
		},
		func(err error) {
			if err != nil {
				d.fail(senseWriteError)
			}
			d.phase = next
		},
	}
}

// fail ends a command early: what is left is refused.
func (d *Disk) fail(s sense) {
	d.status, d.unit.last, d.piece, d.left = cswFailed, s, nil, 0
}
