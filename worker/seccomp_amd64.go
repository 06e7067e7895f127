//go:build linux

package worker

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// allowedHere is what other machines have no number for.
var allowedHere = []uint32{unix.SYS_EPOLL_WAIT}
