// Package debpkg keeps Debian packages unpacked in a per-user cache, without
// root and without installing anything.
//
// The tests run QEMU, two Debian kernels and the stock USB/IP tools. None of
// them needs to be on the machine: a [Tree] names some packages, and
// [Cache.Path] gives the directory in which they stand unpacked together with
// everything they depend on. What is missing is fetched with the machine's own
// apt, from the machine's own sources and checked against its keys, but with
// package lists of the cache's own and an empty dpkg status, so that the whole
// closure of dependencies comes along whatever is installed.
//
// A tree is as good as unpacked files are: no maintainer script has run, so
// there is no ld.so.cache, no alternatives, no users. Programs of a tree run on
// the machine through the tree's own dynamic linker, see [Command], and inside
// a guest that has the tree as its root as they are.
//
// A tree stays as it was fetched until [Cache.Update] asks for newer versions.
// Processes share a cache safely: a tree appears whole, by a rename, and a lock
// keeps two of them from fetching the same one.
package debpkg
