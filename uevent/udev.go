package uevent

import (
	"encoding/binary"
	"fmt"
)

// The header of libudev's messages (struct monitor_netlink_header in
// src/libsystemd/sd-device/device-monitor.c of systemd): a prefix, numbers in
// the byte order of the machine and, where listeners filter in the kernel, of
// the network.
const (
	udevPrefix = "libudev\x00"
	udevMagic  = 0xfeedcafe
	udevHeader = 40
)

// appendUdev appends what udev tells of an event that it has dealt with. Its
// listeners ignore what has no number.
func appendUdev(dst []byte, e Event, seqnum uint64) []byte {
	properties := appendProperties(nil, e)
	properties = fmt.Appendf(properties, "SEQNUM=%d\x00", seqnum)
	dst = append(dst, udevPrefix...)
	dst = binary.BigEndian.AppendUint32(dst, udevMagic)
	for _, n := range []int{udevHeader, udevHeader, len(properties)} {
		dst = binary.NativeEndian.AppendUint32(dst, uint32(n))
	}
	for _, key := range []string{"SUBSYSTEM", "DEVTYPE"} {
		hash := uint32(0) // none: no filter asks for it
		if value := e.Env[key]; value != "" {
			hash = murmur2(value)
		}
		dst = binary.BigEndian.AppendUint32(dst, hash)
	}
	dst = binary.BigEndian.AppendUint64(dst, 0) // no tags
	return append(dst, properties...)
}

// murmur2 is Appleby's MurmurHash2 with seed 0, by which libudev's filters know
// a subsystem.
func murmur2(s string) uint32 {
	const m = 0x5bd1e995
	h := uint32(len(s))
	data := []byte(s)
	for ; len(data) >= 4; data = data[4:] {
		k := binary.LittleEndian.Uint32(data) * m
		h = h*m ^ (k^k>>24)*m
	}
	if len(data) > 0 {
		var rest [4]byte
		copy(rest[:], data)
		h = (h ^ binary.LittleEndian.Uint32(rest[:])) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}
