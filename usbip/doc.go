// Package usbip speaks USB/IP, version 0x0111: the protocol by which a machine
// uses a USB device that is plugged into another one. It is what Linux, its
// usbip tools, and the servers and clients for other systems speak.
//
// An [Importer] is a remote device as a [usb.Device]. An [Exporter] offers
// [usb.Device]s to importers, Linux among them. [ServeDevice] is what an
// Exporter does for one connection, on any socket that is past the handshake:
// given one end of a socketpair whose other end was written into a vhci_hcd
// attach file, it puts a Device into the local kernel.
//
// # The protocol as it is
//
// All numbers are big-endian but those inside a setup packet. A connection
// begins with one request of the importer. OP_REQ_DEVLIST asks for a list, and
// the exporter closes the connection behind it. OP_REQ_IMPORT asks for a device
// by its busid; if the status of the reply is 0 the device's description
// follows, and with its last byte the connection enters the URB phase, in which
// it stays until one side closes it. There is no message that says goodbye, and
// none that gives a device back.
//
// In the URB phase the importer sends CMD_SUBMIT for a transfer and CMD_UNLINK
// to cancel one, each with a sequence number of its own, and the exporter
// answers with RET_SUBMIT and RET_UNLINK in any order. All four have a header
// of 48 bytes. Data follows a CMD_SUBMIT that goes OUT and a RET_SUBMIT that
// came IN, and then, for isochronous transfers, 16 bytes a packet. IN data of
// isochronous transfers travels without the gaps that short packets leave; OUT
// data with them.
//
// These matter, and are not in the kernel's Documentation/usb/usbip_protocol.rst,
// or are wrong there:
//
//   - The status of a reply is not 0 or 1 but one of [OpStatus], and when it is
//     not 0 nothing follows.
//   - The type of a transfer is not told. number_of_packets looks like it, but
//     is garbage for all but isochronous transfers, where it decides how many
//     bytes follow. Only the descriptors and the current alternate settings
//     tell; both roles keep a [usb.Endpoints].
//   - RET_UNLINK with a status of -104 (ECONNRESET) means that the transfer was
//     cancelled and no RET_SUBMIT will come. With 0 it means that the transfer
//     was over, and that its RET_SUBMIT has been sent before. Sent in the wrong
//     order, a Linux importer loses the result and then, on a RET_SUBMIT it no
//     longer knows, the connection. An Exporter here sends both through one
//     queue.
//   - Linux may send the CMD_UNLINK of a transfer ahead of its CMD_SUBMIT, and
//     answered with 0 it completes the transfer as a success that moved nothing,
//     and ends the connection at the RET_SUBMIT. An Exporter here answers when
//     the CMD_SUBMIT has come: cancelled, without having made the transfer.
//   - Reset of the device is SET_FEATURE(PORT_RESET), a request to a hub, sent
//     to endpoint 0 of the device. Until late in 2024 Linux performed it and then
//     passed it on to the device as well, which stalls: an Importer takes that
//     for a success.
//   - SET_ADDRESS is never sent. Bulk streams cannot be.
//
// # The life of a session
//
// An importer calls [Dial] and [Import]; or [RequestImport], and hands the
// socket to a kernel, or to a process that calls [NewImporter]. The Importer
// reads the device's descriptors, within the caller's context, checks them, and
// is a usb.Device from then on. It ends when the connection does: transfers in
// flight complete with [usb.StatusNoDevice], Gone is closed, and
// [Importer.Err] tells why.
//
// An exporter's session begins with an unconfigured device and ends with a
// reset, so that the next importer finds nothing of this one. In between, the
// transfers of the peer are submitted to the Device in the order in which they
// came, and each answer leaves when the Device has completed it. When the
// connection ends, all are cancelled and waited for before the reset.
//
// # Peers that are not friends
//
// Every byte read is taken to be hostile. Sizes are compared with [Limits]
// before memory is taken; a transfer beyond them fails with -ENOMEM, and what
// belongs to it is still read, because the UNLINK that frees things may be
// behind it. Where the following bytes have lost their meaning the connection
// ends with an error that wraps [ErrProtocol]. A peer that never reads ends
// with Limits.WriteTimeout; one that does not answer cancellations, with
// ImportOptions.UnlinkTimeout; one that opens connections and asks for nothing,
// with Exporter.HandshakeTimeout or when too many others come; one that
// vanished, with Limits.PeerTimeout. A peer that answers cancellations and nothing
// else is within the protocol: the contexts of those who wait end that.
//
// Not everything that is odd is refused. Importers live with the servers there
// are: those that answer UNLINK with 0 when it succeeded, or twice, or never if
// the transfer was over; those that send back the data of OUT transfers; those
// that answer with a status that is no errno.
//
// There is no encryption and no authentication in the protocol. Both roles take
// any net.Conn, so TLS can be put around it where both ends agree.
//
// # Speed
//
// One goroutine of a connection reads; an exporter has another that waits for
// the device to go. Answers and requests are queued, and written at once by
// whoever queued them, without waiting, so that a round trip wakes nobody it
// does not have to; while the reader still has input at hand it holds the
// writing back, and a burst of answers leaves in one write. What it reads may be
// for another connection, where a Device that is exported is imported: each of
// the two tells the other of its bursts ([usb.Batcher]). Only when the socket
// is full does a goroutine of its own wait for it. A connection with nothing to
// do holds no buffer. None of this allocates. The benchmarks set each role
// beside a bare echo of the same messages.
//
// On Linux no call on a socket waits in the kernel, whatever others who share it
// make of its mode, and Go's scheduler is not told of any. It would wake the
// runtime's monitor thread for each message that comes to a quiet process, which
// takes a tenth of a round trip over loopback.
//
// That needs a socket: a [*net.TCPConn] or [*net.UnixConn] on a Unix system.
// All other connections work, with a goroutine for each burst of writing.
//
// # Dead ends
//
// Without telling each other, two roles back to back write every message by
// itself: with 32 transfers in flight they then reach a third of a bare relay, in
// place of three quarters.
//
// A goroutine that reads and one that writes, with a channel between them, reach
// little more than half the round trips of a bare echo. Reading through a
// bufio.Reader makes ten thousand idle devices pay for ten thousand buffers; a
// deadline for every message costs more than the message.
//
// Writing the header and the data of a large OUT transfer in two plain calls
// sends two packets and wakes the peer twice, and copying the data behind the
// header moves it once more than needed. The flag that holds the header back
// until the data follows (MSG_MORE, on Linux) avoids both. The peer can then
// answer before the writer has taken note that the data is gone: the reader
// waits for that, since the URB must not complete while its buffer is in use.
//
// Completing a cancelled transfer at once, without waiting for the peer's
// answer, would be quicker and wrong: a transfer that had succeeded would be
// told as cancelled, and its data lost.
package usbip
