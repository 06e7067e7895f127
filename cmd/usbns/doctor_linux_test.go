package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usbns/usbns/doctor"
)

func TestPrintProof(t *testing.T) {
	proof := &doctor.Proof{Own: "1-1 (A)", Neighbour: "1-2 (B)", Attempts: []doctor.Attempt{
		{Case: "node-open", Why: "whoever opens a node uses the device", Verdict: doctor.KeptOut, Text: "permission denied"},
		{Case: "uevents", Why: "the kernel tells of every device", Verdict: doctor.Escaped, Text: "an event tells B"},
		{Case: "node-open", Why: "whoever opens a node uses the device", Own: true, Verdict: doctor.Reached, Text: "opened it"},
		{Case: "sysfs-bus", Why: "lsusb lists what is there", Own: true, Verdict: doctor.Blind, Text: "not among 2"},
	}}
	var out strings.Builder
	if err := printProof(&out, proof); err != nil {
		t.Fatal(err)
	}
	const want = `The container has 1-1 (A), its neighbour 1-2 (B).

CASE       DEVICE       VERDICT   EVIDENCE
node-open  neighbour's  kept out  permission denied
uevents    neighbour's  escaped   an event tells B
node-open  own          reached   opened it
sysfs-bus  own          blind     not among 2

Not private:
  uevents: the kernel tells of every device

Of 2 attempts on the neighbour's device 1 got through; of 2 on the own one 1 did not.
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
