package vhci

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/usbns/usbns/usb"
)

// What Linux printed for a controller cut to 2+2 ports.
const (
	textIdle = `hub port sta spd dev      sockfd local_busid
hs  0000 004 000 00000000 000000 0-0
hs  0001 004 000 00000000 000000 0-0
ss  0002 004 000 00000000 000000 0-0
ss  0003 004 000 00000000 000000 0-0
`
	textBusy = `hub port sta spd dev      sockfd local_busid
hs  0030 006 003 00010002 000003 3-1
hs  0031 005 000 00000000 000000 0-0
ss  0032 006 005 0003000a 000011 4-1
ss  0033 007 000 00000000 000000 0-0
`
	textNotReady = `hub port sta spd dev      sockfd local_busid
hs  0060 005 000 00000000 0000000000000000 0-0
ss  0061 005 000 00000000 0000000000000000 0-0
`
)

func TestParseStatus(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []Port
	}{
		{"idle", textIdle, []Port{
			{Number: 0, Hub: HubHigh, Status: StatusNull},
			{Number: 1, Hub: HubHigh, Status: StatusNull},
			{Number: 2, Hub: HubSuper, Status: StatusNull},
			{Number: 3, Hub: HubSuper, Status: StatusNull},
		}},
		{"busy", textBusy, []Port{
			{Number: 30, Hub: HubHigh, Status: StatusUsed, Speed: usb.SpeedHigh, DevID: 1<<16 | 2, SockFD: 3, BusID: "3-1"},
			{Number: 31, Hub: HubHigh, Status: StatusNotAssigned},
			{Number: 32, Hub: HubSuper, Status: StatusUsed, Speed: usb.SpeedSuper, DevID: 3<<16 | 10, SockFD: 11, BusID: "4-1"},
			{Number: 33, Hub: HubSuper, Status: StatusError},
		}},
		{"controller not ready", textNotReady, []Port{
			{Number: 60, Hub: HubHigh, Status: StatusNotAssigned},
			{Number: 61, Hub: HubSuper, Status: StatusNotAssigned},
		}},
		{"being detached, on Linux 6.1", statusHeader + "hs  0000 006 003 00110002 4294967295 1-1\n", []Port{
			{Number: 0, Hub: HubHigh, Status: StatusUsed, Speed: usb.SpeedHigh, DevID: 17<<16 | 2, SockFD: -1, BusID: "1-1"},
		}},
		{"columns that outgrow their width", statusHeader + "hs  12345 006 002 ffffffff 1234567 100-1.2.3\n", []Port{
			{Number: 12345, Status: StatusUsed, Speed: usb.SpeedFull, DevID: 1<<32 - 1, SockFD: 1234567, BusID: "100-1.2.3"},
		}},
		{"a status without a name", statusHeader + "hs  0000 042 000 00000000 000000 0-0\n", []Port{
			{Status: 42},
		}},
		{"no ports", statusHeader, []Port{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseStatus([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseStatusRefuses(t *testing.T) {
	const line = "hs  0000 006 003 00010002 000003 3-1\n"
	replace := func(from, to string) string { return statusHeader + strings.Replace(line, from, to, 1) }
	if _, err := ParseStatus([]byte(statusHeader + line)); err != nil {
		t.Fatalf("the line to be spoilt: %v", err)
	}

	for name, text := range map[string]string{
		"nothing":                      "",
		"no header":                    line,
		"the header of Linux 4.13":     "port sta spd dev      socket           local_busid\n" + line,
		"half a header":                statusHeader[:20],
		"a line without its end":       statusHeader + line[:len(line)-1],
		"a line cut in the middle":     statusHeader + line[:20] + "\n",
		"an empty line":                statusHeader + "\n" + line,
		"an unknown hub":               replace("hs", "xs"),
		"no hub":                       replace("hs  ", ""),
		"one space":                    replace("hs  ", "hs "),
		"a tab":                        replace("006 ", "006\t"),
		"a space at the end":           replace("3-1", "3-1 "),
		"another column":               replace("3-1", "3-1 x"),
		"a column less":                replace(" 3-1", ""),
		"a short port":                 replace("0000", "000"),
		"a padded port":                replace("0000", "00000"),
		"a negative port":              replace("0000", "-001"),
		"a port above 2^31-1":          replace("0000", "2147483648"),
		"a status above 255":           replace("006", "256"),
		"a speed above 255":            replace("003 ", "259 "),
		"a speed that there is not":    replace("003 ", "007 "),
		"no speed in use":              replace("003 ", "000 "),
		"a devid of 9 digits":          replace("00010002", "100010002"),
		"a devid in upper case":        replace("00010002", "0001000A"),
		"a sockfd above 2^32-1":        replace("000003", "4294967296"),
		"a negative sockfd":            replace("000003", "-00001"),
		"16 digits in use":             replace("000003", "0000000000000000"),
		"16 digits on a free port":     statusHeader + "hs  0000 004 000 00000000 0000000000000000 0-0\n",
		"a device on a free port":      replace("006", "004"),
		"a device on a port at 005":    replace("006", "005"),
		"a busid that leads elsewhere": replace("3-1", "../3-1"),
		"a busid with a slash":         replace("3-1", "3/1"),
		"a busid without a port":       replace("3-1", "3-"),
		"a busid without a bus":        replace("3-1", "-1"),
		"a busid with two dashes":      replace("3-1", "3-1-1"),
		"a busid with an empty port":   replace("3-1", "3-1..1"),
		"an interface":                 replace("3-1", "3-1:1.0"),
		"a root hub":                   replace("3-1", "usb3"),
		"a busid of 32 bytes":          replace("3-1", "3-1"+strings.Repeat(".1", 14)+"2"),
		"a NUL":                        replace("3-1", "3-1\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			ports, err := ParseStatus([]byte(text))
			if err == nil {
				t.Fatalf("parsed as %+v", ports)
			}
			if !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%v is not EINVAL", err)
			}
		})
	}
}

func TestAppendStatus(t *testing.T) {
	for _, text := range []string{textIdle, textBusy, statusHeader} {
		ports, err := ParseStatus([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(text, string(AppendStatus(nil, ports))); diff != "" {
			t.Errorf("text (-want +got):\n%s", diff)
		}
	}
}

// The kernel shows nothing of a device that has no address yet, whatever it
// knows.
func TestAppendStatusHidesWhatIsNotInUse(t *testing.T) {
	const want = statusHeader + "ss  0007 005 000 00000000 000000 0-0\n"
	got := AppendStatus(nil, []Port{{
		Number: 7, Hub: HubSuper, Status: StatusNotAssigned,
		Speed: usb.SpeedSuper, DevID: 5, SockFD: 6, BusID: "2-8",
	}})
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

func TestAppendStatusDoesNotAllocate(t *testing.T) {
	ports, err := ParseStatus([]byte(textBusy))
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { AppendStatus(dst, ports) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// anyPort draws a port that the text can hold whole.
func anyPort() *rapid.Generator[Port] {
	return rapid.Custom(func(t *rapid.T) Port {
		p := Port{
			Number: rapid.IntRange(0, 1<<31-1).Draw(t, "number"),
			Hub:    rapid.SampledFrom([]Hub{HubHigh, HubSuper}).Draw(t, "hub"),
			Status: Status(rapid.Uint8().Draw(t, "status")),
		}
		if rapid.Bool().Draw(t, "used") {
			p.Status = StatusUsed
		}
		if p.Status == StatusUsed {
			p.Speed = rapid.Map(rapid.Uint8Range(1, 6), func(n uint8) usb.Speed { return usb.Speed(n) }).Draw(t, "speed")
			p.DevID = rapid.Uint32().Draw(t, "devid")
			p.SockFD = rapid.IntRange(-1, 1<<31-1).Draw(t, "sockfd")
			p.BusID = rapid.StringMatching(`[1-9][0-9]{0,2}-[1-9][0-9]?(\.[1-9]){0,6}`).Draw(t, "busid")
		}
		return p
	})
}

func TestStatusRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(anyPort(), 0, 40).Draw(t, "ports")
		got, err := ParseStatus(AppendStatus(nil, want))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(want, got) {
			t.Fatalf("came back as %+v", got)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	for _, text := range []string{"", statusHeader, textIdle, textBusy, textNotReady} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := string(text)
		ports, err := ParseStatus(text)
		if string(text) != before {
			t.Fatal("the text was changed")
		}
		if err != nil {
			return
		}
		printed := AppendStatus(nil, ports)
		if want := strings.ReplaceAll(before, " 0000000000000000 0-0\n", " 000000 0-0\n"); string(printed) != want {
			t.Fatalf("%q printed as %q", text, printed)
		}
		for _, p := range ports {
			if p.BusID != "" && !validBusID(p.BusID) {
				t.Fatalf("busid %q", p.BusID)
			}
		}
	})
}

func TestStatusWords(t *testing.T) {
	for status, want := range map[Status]string{
		0:                     "Unknown Status",
		StatusDeviceAvailable: "Device Available",
		StatusDeviceUsed:      "Device in Use",
		StatusDeviceError:     "Device Error",
		StatusNull:            "Port Available",
		StatusNotAssigned:     "Port Initializing",
		StatusUsed:            "Port in Use",
		StatusError:           "Port Error",
		8:                     "Unknown Status",
	} {
		if got := status.String(); got != want {
			t.Errorf("status %d is %q, want %q", status, got, want)
		}
	}
}

func BenchmarkAppendStatus(b *testing.B) {
	ports := make([]Port, 30)
	for i := range ports {
		ports[i] = Port{Number: i, Status: StatusUsed, Speed: usb.SpeedHigh, DevID: 0x10002, SockFD: 5, BusID: "3-1"}
	}
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		AppendStatus(dst, ports)
	}
}

func BenchmarkParseStatus(b *testing.B) {
	ports := make([]Port, 30)
	for i := range ports {
		ports[i] = Port{Number: i, Status: StatusNull}
	}
	text := AppendStatus(nil, ports)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseStatus(text); err != nil {
			b.Fatal(err)
		}
	}
}
