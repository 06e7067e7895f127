//go:build linux

package guard

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Names by which a later process finds program and map. The kernel keeps 15
// bytes.
const (
	programName = "usbns_guard"
	mapName     = "usbns_devices"
)

// maxRules is above all classes and what can be attached to a container.
const maxRules = 4096

// A key is a Device in the map.
type key struct{ Type, Major, Minor uint32 }

// The values in the map.
const (
	allowed uint32 = iota + 1
	refused
)

func (d Device) key() key {
	kind := uint32(unix.BPF_DEVCG_DEV_CHAR)
	if d.Block {
		kind = unix.BPF_DEVCG_DEV_BLOCK
	}
	return key{kind, d.Major, d.Minor}
}

func newRules() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: mapName, Type: ebpf.Hash, KeySize: 12, ValueSize: 4, MaxEntries: maxRules,
	})
	if err != nil {
		return nil, fmt.Errorf("make the table of a device guard: %w", err)
	}
	return m, nil
}

// newProgram makes the program that asks rules, and where these do not refuse
// asks what follows, if anything does.
func newProgram(rules *ebpf.Map, next asm.Instructions) (*ebpf.Program, error) {
	if len(next) == 0 {
		next = asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
	}
	// R1 is a struct bpf_cgroup_dev_ctx: type and access, major, minor.
	const keyAt = -16
	lookup := func() asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, rules.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, keyAt),
			asm.FnMapLookupElem.Call(),
		}
	}
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
		asm.And.Imm(asm.R2, 0xffff),
		asm.StoreMem(asm.RFP, keyAt, asm.R2, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, 4, asm.Word),
		asm.StoreMem(asm.RFP, keyAt+4, asm.R2, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, 8, asm.Word),
		asm.StoreMem(asm.RFP, keyAt+8, asm.R2, asm.Word),
	}
	program = append(program, lookup()...)
	program = append(program,
		asm.JEq.Imm(asm.R0, 0, "class"),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R0, int32(allowed), "next"),
		asm.Ja.Label("refuse"),
		asm.StoreImm(asm.RFP, keyAt+8, -1, asm.Word).WithSymbol("class"), // anyMinor
	)
	program = append(program, lookup()...)
	program = append(program,
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("refuse"),
		asm.Return(),
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("next"),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: programName, Type: ebpf.CGroupDevice, AttachType: ebpf.AttachCGroupDevice,
		License: "Apache-2.0", Instructions: append(program, next...),
	})
	if err != nil {
		return nil, fmt.Errorf("load a device guard: %w", err)
	}
	return p, nil
}

// rulesOf returns what a program that is not ours does, to be put behind ours.
// That of a runtime compares numbers and nothing else.
func rulesOf(p *ebpf.Program) (asm.Instructions, error) {
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	if maps, _ := info.MapIDs(); len(maps) > 0 {
		return nil, errors.New("it has tables")
	}
	all, err := info.Instructions()
	if err != nil {
		return nil, err
	}
	for i, in := range all {
		if in.OpCode.JumpOp() == asm.Call {
			return nil, errors.New("it calls functions")
		}
		all[i] = asm.Instruction{OpCode: in.OpCode, Dst: in.Dst, Src: in.Src, Offset: in.Offset, Constant: in.Constant}
	}
	return all, nil
}
