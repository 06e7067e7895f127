// Vmexec runs a package's tests in a QEMU guest with a real kernel, as root.
//
//	go build -o bin/vmexec ./internal/vmexec
//	go test -tags guest -run '^TestGuest' -exec 'vmexec -kernel 6.12' ./vhci
//
// with CGO_ENABLED=0, for what runs in a guest must be static. It is the -exec
// program of go test: -v, -run, -json, -cover, -timeout and the caching of
// results work as ever. QEMU, the kernels (Debian's 6.12 and 6.1) and the
// guest's root come from Debian's packages, fetched into the user's cache by
// package debpkg on first use, or beforehand by vmexec -fetch.
//
// Tests that want a guest have names that begin with TestGuest and stand in
// files with the build tag guest, so that nobody runs them on the machine by
// mistake. A package none of whose functions matches -run boots nothing.
//
// # What a guest has
//
// Two processors, 512 MB, and as / a small Debian with the stock usbip, usbipd,
// udev, lsusb and a shell: see rootTree. It may be written to, and is forgotten.
// The test runs in the package's directory by its name on the host, where only
// testdata is, with lo up and the usual file systems mounted. Processes that it
// leaves are killed. A kernel oops is a panic. What more it needs the test
// files say, in comment lines that vmexec reads:
//
//	//vmexec:modules vhci-hcd usbhid
//	//vmexec:file ../bin/usbns:/usr/bin/usbns
//	//vmexec:env NAME
//	//vmexec:memory 1G
//	//vmexec:tree runtimes
//	//vmexec:qemu -device qemu-xhci -device usb-kbd
//
// Modules come with those they depend on, and nothing loads others later; that
// a module is built into one of the kernels does not matter. A file or tree of
// the host, relative to the package, is laid over the root at the same path or
// the one after the colon. Variables are passed on by name. A tree is one of
// extraTrees, packages that few guests need, laid over the root as well. The
// rest is for QEMU's command line.
//
// # How it works
//
// The same program is both sides. The host's finds the modules, writes an
// initramfs with itself as /init, the modules, the test binary and what is
// carried, and starts QEMU. The guest's, the first process, mounts the Debian
// tree over 9p under an overlay, moves into it and runs the test. Output,
// results (profiles, the log by which go test caches) and exit status come back
// over one virtio-serial port. The kernel's console is kept and shown only if
// the guest dies, or as it comes with -console; if a test fails, the end of the
// kernel's log with the tasks that are stuck follows its output. A guest that
// outlasts the test's -timeout by half a minute is killed, and QEMU ends with
// vmexec however that ends.
//
// # Why so
//
// Everything is emulated (TCG): KVM is rarely there where tests run. On two
// cores of 2.6 GHz a guest with an empty test takes 3.3 s with kernel 6.12 and
// 2.9 s with 6.1, of which 2.1 s and 1.8 s pass before the first process. The
// kernel is uncompressed on the host, once: doing that itself took 6.1 another
// 2.8 s, and 6.12 0.7 s. The serial port of a PC carries 100 KB/s under
// emulation, a virtio-serial port 10 MB/s.
//
// The root over 9p needs no image to be built and no memory; the first three
// programs run from it take 0.5 s together. The same tree in the initramfs cost
// each guest 0.6 s and 125 MB; a program run for the fiftieth time then takes
// 29 ms, and 38 ms over 9p, which still asks the host at every open. Files
// belong to whoever fetched them, so in the guest they may have another owner
// than root; setuid bits are dropped for that reason.
//
// Ending QEMU from within by isa-debug-exit lost data: a write to a port
// returns before QEMU has it. A guest ends itself only if it fails.
package main
