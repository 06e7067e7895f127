package usb

import "sync"

// fakeDevice answers control transfers by a function. Where that is silent the
// transfer stays in flight until it is cancelled.
type fakeDevice struct {
	answer    func(Setup) (data []byte, status Status)
	cancelled Status // what a cancelled transfer says

	mu       sync.Mutex
	requests []Setup
}

// silent is the status of an answer that does not come.
const silent Status = 1 << 30

func (d *fakeDevice) Submit(u *URB) error {
	d.mu.Lock()
	d.requests = append(d.requests, u.Setup)
	d.mu.Unlock()
	data, status := d.answer(u.Setup)
	if status == silent {
		return nil
	}
	u.Actual, u.Status = copy(u.Buffer, data), status
	u.Complete(u)
	return nil
}

func (d *fakeDevice) Cancel(u *URB) {
	u.Status = d.cancelled
	u.Complete(u)
}

// standIn is the fake of a device that has these descriptors and no faults.
func standIn(raw Raw) *fakeDevice {
	d, err := NewDescriptors(raw)
	if err != nil {
		panic(err)
	}
	return &fakeDevice{cancelled: StatusUnlinked, answer: func(s Setup) ([]byte, Status) {
		if b, ok := d.Answer(s); ok {
			return b, StatusOK
		}
		return nil, StatusStall
	}}
}

// deviceBytes is the device descriptor of a device with that many
// configurations and the strings 1 to 3.
func deviceBytes(configurations uint8) []byte {
	return []byte{18, DescDevice, 0x10, 0x02, 0xef, 2, 1, 64, 0x6d, 0x04, 0x77, 0xc0, 0x11, 0x72, 1, 2, 3, configurations}
}

// configBytes makes a configuration descriptor of its parts, wTotalLength
// included.
func configBytes(value uint8, parts ...[]byte) []byte {
	b := []byte{9, DescConfiguration, 0, 0, 1, value, 0, 0x80, 50}
	for _, p := range parts {
		b = append(b, p...)
	}
	b[2], b[3] = byte(len(b)), byte(len(b)>>8)
	return b
}

func interfaceBytes(number, setting uint8) []byte {
	return []byte{9, DescInterface, number, setting, 0, 3, 1, 2, 0}
}

func endpointBytes(a Address, t TransferType) []byte {
	return []byte{7, DescEndpoint, byte(a), byte(t), 0x00, 0x02, 4}
}

func companionBytes() []byte {
	return []byte{6, DescSSEndpointCompanion, 15, 3, 0x34, 0x12}
}

func bosBytes() []byte {
	return []byte{5, DescBOS, 12, 0, 1, 7, DescDeviceCapability, 2, 6, 0, 0, 0}
}

// goodRaw has all there can be: two configurations, alternate settings, class
// descriptors, a super speed companion, a BOS and strings.
func goodRaw() Raw {
	return Raw{
		Device: deviceBytes(2),
		Configurations: [][]byte{
			configBytes(
				1,
				interfaceBytes(0, 0), []byte{3, 0x21, 0xaa},
				endpointBytes(0x81, Bulk), companionBytes(), []byte{2, 0x25},
				endpointBytes(0x02, Interrupt),
				interfaceBytes(1, 0),
				interfaceBytes(1, 1), endpointBytes(0x83, Isochronous),
			),
			configBytes(5, interfaceBytes(0, 0), endpointBytes(0x81, Interrupt)),
		},
		BOS: bosBytes(),
		Strings: []RawString{
			{Index: 0, Data: []byte{4, DescString, 0x09, 0x04}},
			{Index: 1, LangID: 0x0409, Data: EncodeString("Maker")},
			{Index: 2, LangID: 0x0409, Data: EncodeString("Gerät 🙂")},
			{Index: 3, LangID: 0x0409, Data: EncodeString("0001")},
		},
	}
}
