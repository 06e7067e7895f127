package control

import (
	"encoding/json"
	"testing"
)

func TestHex(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "00ff": "00ff", "DE AD be:ef\n": "deadbeef",
	} {
		var h Hex
		if err := h.UnmarshalText([]byte(text)); err != nil || h.String() != want {
			t.Errorf("%q is %v, %v", text, h, err)
		}
	}
	for _, bad := range []string{"0", "0x12", "zz", "1 2 3"} {
		var h Hex
		if err := h.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is %v", bad, h)
		}
	}
	if b, err := json.Marshal(Transferred{Actual: 2, Data: Hex{1, 0xfe}}); string(b) != `{"actual":2,"data":"01fe"}` {
		t.Errorf("as JSON %s, %v", b, err)
	}
}
