package usb

import "testing"

func TestHIDReportLength(t *testing.T) {
	hid := []byte{9, descHID, 0x11, 1, 0, 1, descReport, 63, 1}
	for _, tt := range []struct {
		name  string
		extra []byte
		want  uint16 // 0: an error
	}{
		{"none", nil, 0},
		{"one", hid, 319},
		{"behind another", append([]byte{3, 0x24, 0}, hid...), 319},
		{"two", append(hid[:9:9], hid...), 0},
		{"length of nothing", []byte{9, descHID, 0x11, 1, 0, 1, descReport, 0, 0}, 0},
		{"two class descriptors", []byte{12, descHID, 0x11, 1, 0, 2, descReport, 9, 0, descReport, 1, 0}, 0},
		{"claims two", []byte{9, descHID, 0x11, 1, 0, 2, descReport, 9, 0}, 0},
		{"of another type", []byte{9, descHID, 0x11, 1, 0, 1, 0x23, 9, 0}, 0},
		{"cut", hid[:8], 0},
		{"length zero", []byte{0, descHID, 0x11}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := hidReportLength(tt.extra)
			if got != tt.want || (err != nil) != (tt.want == 0) {
				t.Errorf("%d, %v; want %d", got, err, tt.want)
			}
		})
	}
}
