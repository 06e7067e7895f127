package usbip

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usbns/usbns/internal/must"
)

// brokenInputs lists what has broken other implementations (CVE-2016-3955,
// CVE-2017-16911 to 16914, CVE-2018-5814, CVE-2021-29265, CVE-2022-49389,
// syzbot, and the bug trackers of other servers), and which test sends it to
// which role. "" is where the role cannot be sent it.
var brokenInputs = []struct{ input, exporter, importer string }{
	{"length negative", "TestSessionEnds/length negative, OUT", ""},
	{"length huge", "TestSessionRefuses/length huge, IN", ""},
	{"length over the cap", "TestSessionRefuses/length over the cap, OUT", "TestImporterPeerNeverReads"},
	{"actual_length negative", "", "TestImporterGivesUp/actual_length negative"},
	{"actual_length over the buffer", "", "TestImporterGivesUp/actual_length over the buffer"},
	{"actual_length over the buffer on OUT", "", "TestImporterGivesUp/actual_length over the buffer on OUT"},
	{"actual_length of what is refused", "TestSessionRefuses/unknown endpoint, OUT", "TestImporterGivesUp/actual_length huge"},

	{"number_of_packets negative", "TestSessionEnds/isochronous packets negative", "TestImporterGivesUp/isochronous packets negative"},
	{"number_of_packets over 1024", "TestSessionEnds/isochronous packets over 1024", "TestImporterGivesUp/isochronous packets over those asked"},
	{"number_of_packets over those submitted", "", "TestImporterGivesUp/isochronous packets over those asked"},
	{"number_of_packets times 16 overflows", "TestSessionEnds/isochronous packets times 16 wrap", "TestImporterGivesUp/isochronous packets times 16 wrap"},
	{"packet offset past the buffer", "TestSessionRefuses/isochronous offset past the buffer", "TestImporterGivesUp/isochronous packets past their buffer"},
	{"packet length past the buffer", "TestSessionRefuses/isochronous length past the buffer", "TestImporterGivesUp/isochronous packet over its length"},
	{"packet sums that wrap", "TestSessionRefuses/isochronous offset and length wrap", "TestImporterGivesUp/isochronous sum wraps"},
	{"packet sums that mismatch", "TestSessionTolerates/isochronous actual_length in a request", "TestImporterGivesUp/isochronous sum under actual_length"},

	{"seqnum unknown", "TestSessionUnlinks/of nothing: 0", "TestImporterGivesUp/unknown sequence number"},
	{"seqnum duplicate", "TestSessionEnds/sequence number twice in flight", "TestImporterAnsweredTwice/the same again"},
	{"seqnum zero", "TestSessionTolerates/sequence number 0", "TestImporterGivesUp/sequence number 0"},
	{"seqnum wrapping", "TestSessionTolerates/sequence number 2^32-1", "TestImporterTolerates/sequence numbers at their end"},
	{"unlink before the transfer", "TestSessionUnlinks/long before the submit: 0, and the transfer waits", "TestImporterTolerates/RET_UNLINK 0 ahead of the RET_SUBMIT"},
	{"unlink just ahead of the transfer", "TestSessionUnlinks/ahead of the submit, as Linux may: cancelled with it", ""},
	{"unlink after the transfer", "TestSessionUnlinks/after it was over: 0", "TestImporterTolerates/over before it was cancelled"},
	{"unlink without a transfer", "TestSessionUnlinks/of nothing: 0", "TestImporterTolerates/RET_UNLINK for nothing"},
	{"RET_UNLINK without RET_SUBMIT", "", "TestImporterTolerates/RET_UNLINK 0 without a RET_SUBMIT"},
	{"double unlink", "TestSessionUnlinks/twice: both answered when it is over", "TestImporterTolerates/RET_UNLINK twice"},
	{"unlink of an unlink", "TestSessionUnlinks/of an unlink: 0", "TestImporterUnlinkAnsweredAsSubmit"},
	{"unlink flood", "TestSessionUnlinkFlood", ""},
	{"wrong devid", "TestSessionEnds/wrong devid in a submit", "TestImporterTolerates/devid, direction and endpoint in an answer"},
	{"endpoint over 15", "TestSessionRefuses/endpoint 16", "TestImporterTolerates/devid, direction and endpoint in an answer"},
	{"unknown command", "TestSessionEnds/command out of range", "TestImporterGivesUp/unknown command"},
	{"trailing bytes", "TestSessionEnds/trailing byte", "TestImporterAnsweredTwice/trailing bytes"},

	{"2^32-1 devices", "", "TestList/2^32-1 devices"},
	{"255 interfaces in a list", "", "TestList/255 interfaces"},
	{"unterminated path", "", "TestList/unterminated path"},
	{"unterminated busid", "TestExporterHandshakes/unterminated busid", "TestList/unterminated busid"},
	{"NUL, newline, slash in strings", "TestExporterHandshakes/busid with newline", "TestList/newline in the busid"},
	{"busid mismatch", "TestExporterHandshakes/unknown busid", "TestRequestImport/another busid"},
	{"wrong version", "TestExporterHandshakes/wrong version", "TestRequestImport/wrong version"},
	{"wrong code", "TestExporterHandshakes/wrong code", "TestRequestImport/wrong code"},
	{"status without a body", "", "TestList/status without a body"},

	{"partial header", "TestSessionEnds/partial header", "TestImporterGivesUp/end inside a header"},
	{"partial header of a handshake", "TestExporterHandshakes/partial header", "TestRequestImport/partial header"},
	{"one byte a second", "TestSessionOneByteASecond", "TestImporterOneByteASecond"},
	{"one byte a second in a handshake", "TestExporterHandshakeTimeout", "TestHandshakeEnds"},
	{"half-open peer", "TestPeerVanishes", "TestPeerVanishes"},
	{"peer that says nothing", "TestExporterHandshakeTimeout", "TestImporterSilentPeer"},
	{"peer that never reads", "TestSessionPeerNeverReads", "TestImporterPeerNeverReads"},
	{"end inside a payload", "TestSessionEnds/end inside a payload", "TestImporterGivesUp/end inside a payload"},
	{"detach in mid-transfer", "TestSessionEndCancels/peer resets", "TestImporterClosedInMidTransfer"},
	{"detach twice", "TestExporterAddRemove", "TestImporterClosedInMidTransfer"},
	{"attach during tear-down", "TestExporterBusyUntilReset", ""},
	{"concurrent attaches", "TestExporterManyImports", "TestExporterManyImports"},
	{"connections that ask for nothing", "TestExporterHandshakeFlood", ""},

	{"descriptor with bLength 0", "", "TestImporterEnumerationFails/device descriptor of length 0"},
	{"descriptor too short", "", "TestImporterEnumerationFails/device descriptor cut"},
	{"descriptor longer than asked for", "", "TestImporterEnumerationFails/more data than asked for"},

	{"server that never answers DEVLIST", "", "TestHandshakeEnds"},
	{"server that closes on an unknown busid", "", "TestRequestImport/closed without an answer"},
	{"server that says 1 to an unknown busid", "", "TestRequestImport/request failed"},
	{"server that answers UNLINK -104 after the end", "", "TestImporterTolerates/over, and then cancelled as well"},
	{"server that never answers UNLINK", "", "TestImporterUnlinkTimeout"},
	{"server that answers nothing but UNLINK", "", "TestImporterOnlyUnlinksAnswered"},
	{"server with statuses that are no errno", "", "TestImporterTolerates/a status that is no errno"},
	{"server that sends OUT data back", "", "TestImporterTolerates/OUT data sent back"},
	{"server with number_of_packets -1", "", "TestImporterTolerates/packets -1 in a bulk answer"},
	{"client with number_of_packets -1", "TestSessionTolerates/packets -1 in a bulk transfer", ""},
	{"server that lists devices without interfaces", "", "TestList/no interfaces"},
}

// What devices say wrongly of themselves is tested in package usb (wTotalLength,
// 255 interfaces, odd strings, padded and missing ones, a BOS of 0 bytes or of
// status 99), and sockets that are no streams in package container.

// TestBrokenInputsAreTested holds the list to the tests there are.
func TestBrokenInputsAreTested(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	must.OK(t, err)
	var source strings.Builder
	for _, f := range files {
		if f != "hostile_test.go" {
			b, err := os.ReadFile(f)
			must.OK(t, err)
			source.Write(b)
		}
	}
	for _, in := range brokenInputs {
		if in.exporter == "" && in.importer == "" {
			t.Errorf("%s is sent to nobody", in.input)
		}
		for _, test := range []string{in.exporter, in.importer} {
			if test == "" {
				continue
			}
			name, sub, _ := strings.Cut(test, "/")
			if !strings.Contains(source.String(), "func "+name+"(") || sub != "" && !strings.Contains(source.String(), `"`+sub+`"`) {
				t.Errorf("%s: there is no test %s", in.input, test)
			}
		}
	}
}
