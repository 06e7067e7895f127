// Package control is the API of a running daemon: its types and a client.
//
// Most of it is HTTP with JSON on a unix socket, RUNDIR/control.sock:
//
//	GET    /v1/controllers                     []Controller
//	POST   /v1/controllers                     Create -> []Controller
//	GET    /v1/controllers/{ref}               Controller
//	DELETE /v1/controllers/{ref}
//	PUT    /v1/controllers/{ref}/container     Container
//	DELETE /v1/controllers/{ref}/container?pid=N
//	GET    /v1/controllers/{ref}/ports         []Port
//	DELETE /v1/controllers/{ref}/ports/{port}
//	POST   /v1/controllers/{ref}/ports/{port}/transfer  Transfer -> Transferred
//
// A ref is a controller's index or its name. Failures are an [Error] with a
// status of 4xx.
//
// A daemon dials nobody. To attach, the client dials the exporter, makes the
// IMPORT itself, and hands the socket over on RUNDIR/attach.sock, a unix socket
// of type SOCK_SEQPACKET: one message with an [Attach] in JSON and the socket
// as its only descriptor (SCM_RIGHTS). The answer is one message, [Attached].
// A client that closes its end before that ends the attempt.
//
// # For whom it is
//
// Whoever is let in administers all controllers. That is root and the daemon's
// own user, by the modes of the sockets and by whom the kernel names at the other
// end.
//
// A container that has a controller has two such sockets of its own, in [OwnDir],
// for the owner of the controller. Behind them is that controller alone: its
// index is 0, it has no name, nothing else can be named, and none is made or
// deleted.
//
// # Dead ends
//
// A descriptor cannot ride on HTTP: net/http reads the socket itself and loses
// it, and a byte stream may merge what was sent apart.
//
// A container's /run is no place for its sockets: an init mounts its own there,
// and a socket that is bound into a container must be bound again by each daemon.
// Its /dev is made before its first program runs, and the daemon makes nodes in
// it anyway.
package control
