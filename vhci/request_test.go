package vhci

import (
	"errors"
	"math"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/usbns/usbns/usb"
)

func TestParseAttach(t *testing.T) {
	plain := AttachRequest{Port: 3, SockFD: 7, DevID: 65538, Speed: usb.SpeedHigh}
	for name, tt := range map[string]struct {
		text string
		want AttachRequest
	}{
		"the stock tool's":        {"3 7 65538 3", plain},
		"echo's":                  {"3 7 65538 3\n", plain},
		"leading white space":     {" \t\n3 7 65538 3", plain},
		"any white space between": {"3\n7\t\v\f\r65538   3", plain},
		"Latin-1's no-break":      {"3\xa07 65538 3", plain},
		"a fifth number":          {"3 7 65538 3 9", plain},
		"trailing text":           {"3 7 65538 3 and so on", plain},
		"text glued to the last":  {"3 7 65538 3x", plain},
		"a C string's end":        {"3 7 65538 3\x0099", plain},
		"leading zeros":           {"0003 07 0065538 03", plain},
		"all zero but the speed":  {"0 0 0 1", AttachRequest{Speed: usb.SpeedLow}},
		"the largest": {
			"2147483647 2147483647 4294967295 6",
			AttachRequest{Port: math.MaxInt32, SockFD: math.MaxInt32, DevID: math.MaxUint32, Speed: usb.SpeedSuperPlus},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseAttach([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestParseAttachRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":                  "",
		"white space":              " \n",
		"three numbers":            "3 7 65538",
		"three numbers and text":   "3 7 65538 x",
		"a word first":             "port 3 7 65538 3",
		"commas":                   "3,7,65538,3",
		"hexadecimal":              "0x3 7 65538 3",
		"text glued to the second": "3 7x 65538 3",
		"a minus":                  "-3 7 65538 3",
		"a minus before sockfd":    "3 -1 65538 3",
		"a plus":                   "+3 7 65538 3",
		"a NUL before the last":    "3 7 65538 \x003",
		"the port 2^32":            "4294967296 7 65538 3",
		"the port 2^32-1":          "4294967295 7 65538 3",
		"the port 2^64":            "18446744073709551616 7 65538 3",
		"the sockfd 2^32-1":        "3 4294967295 65538 3",
		"the devid 2^32":           "3 7 4294967296 3",
		"the speed 0":              "3 7 65538 0",
		"the speed 7":              "3 7 65538 7",
		"the speed 259":            "3 7 65538 259",
		"the speed 2^32+3":         "3 7 65538 4294967299",
		"UTF-8's no-break":         "3\u00a07 65538 3",
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ParseAttach([]byte(text))
			if err == nil {
				t.Fatalf("parsed as %+v", r)
			}
			if !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%v is not EINVAL", err)
			}
		})
	}
}

func TestParseDetach(t *testing.T) {
	for text, want := range map[string]int{
		"0":            0,
		"7":            7,
		"7\n":          7,
		"007":          7,
		"+7":           7, // as kstrtoint
		"-0":           0, // as kstrtoint
		"7\x00garbage": 7,
		"7\n\x00":      7,
		"2147483647":   math.MaxInt32,
	} {
		if got, err := ParseDetach([]byte(text)); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestParseDetachRefuses(t *testing.T) {
	for _, text := range []string{
		"", "\n", " 7", "7 ", "7\n\n", "7\r\n", "7 8", "seven", "0x7", "1_0", "-1", "--1", "+-1", "2147483648", "4294967296", "\x007",
	} {
		if port, err := ParseDetach([]byte(text)); err == nil {
			t.Errorf("%q is port %d", text, port)
		} else if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%q: %v is not EINVAL", text, err)
		}
	}
}

func TestRequestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := AttachRequest{
			Port:   rapid.IntRange(0, math.MaxInt32).Draw(t, "port"),
			SockFD: rapid.IntRange(0, math.MaxInt32).Draw(t, "sockfd"),
			DevID:  rapid.Uint32().Draw(t, "devid"),
			Speed:  usb.Speed(rapid.Uint8Range(1, 6).Draw(t, "speed")),
		}
		if got, err := ParseAttach(AppendAttach(nil, want)); err != nil || got != want {
			t.Fatalf("attach came back as %+v, %v", got, err)
		}
		if got, err := ParseDetach(AppendDetach(nil, want.Port)); err != nil || got != want.Port {
			t.Fatalf("detach came back as %d, %v", got, err)
		}
	})
}

func FuzzParseAttach(f *testing.F) {
	for _, text := range []string{"", "3 7 65538 3", " 3\n7 65538 3x", "-1 2 3 4", "4294967296 1 1 1"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseAttach(text)
		if err != nil {
			return
		}
		if r.Port < 0 || r.SockFD < 0 || !r.Speed.Valid() {
			t.Fatalf("%q parsed as %+v", text, r)
		}
		if again, err := ParseAttach(AppendAttach(nil, r)); err != nil || again != r {
			t.Fatalf("%+v came back as %+v, %v", r, again, err)
		}
	})
}

func FuzzParseDetach(f *testing.F) {
	for _, text := range []string{"", "7", "+7\n", "-0", "-1", "2147483648"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if port, err := ParseDetach(text); err == nil && (port < 0 || port > math.MaxInt32) {
			t.Fatalf("%q is port %d", text, port)
		}
	})
}
