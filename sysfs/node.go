//go:build linux

package sysfs

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/usbns/usbns/controller"
)

// A node names a directory or file. It is the number that the kernel has for it,
// and all there is.
//
// A node of a controller has the controller's serial number, so that it is never
// taken for that of a later controller with the same index.
type node uint64

// Directories that are always there.
const (
	nodeRoot     node = iota + 1 // FUSE_ROOT_ID
	nodeDevices                  // devices
	nodePlatform                 // devices/platform
	nodeNameless                 // c
)

// A kind says what of a controller a node is.
type kind uint8

const (
	kindDir         kind = iota + 1 // devices/platform/vhci_hcd.N
	kindNamelessDir                 // c/NAME
	kindAttach
	kindDetach
	kindPorts
	kindStatus
	kindStockStatus // as the stock tools can bear it
	kindStockOther  // of the other controllers that the stock tools expect
)

// An entry is a name in a directory.
type entry struct {
	name string
	kind kind
}

var (
	dirEntries = []entry{
		{"attach", kindAttach},
		{"detach", kindDetach},
		{"nports", kindPorts},
		{"status", kindStatus},
	}
	namelessEntries = []entry{
		{"attach", kindAttach},
		{"detach", kindDetach},
		{"nports", kindPorts},
		{"status", kindStockStatus},
		{"status.1", kindStockOther},
	}
)

// entries returns what is in a directory, nil if k is a file.
func (k kind) entries() []entry {
	switch k {
	case kindDir:
		return dirEntries
	case kindNamelessDir:
		return namelessEntries
	}
	return nil
}

// written tells whether a file is for writing only; the others are for reading
// only.
func (k kind) written() bool { return k == kindAttach || k == kindDetach }

const (
	kindBits  = 8
	indexBits = 16 // controller.MaxControllers
)

func nodeOf(c *controller.Controller, k kind) node {
	return node(c.Serial()<<(indexBits+kindBits) | uint64(c.Index())<<kindBits | uint64(k))
}

// controllerOf returns the controller that n belongs to, nil if it is deleted or
// n is of none.
func controllerOf(t *controller.Table, n node) (*controller.Controller, kind) {
	c := t.Controller(int(n >> kindBits & (1<<indexBits - 1)))
	if serial := uint64(n >> (indexBits + kindBits)); c == nil || c.Serial() != serial {
		return nil, 0
	}
	return c, kind(n)
}

const dirPrefix = "vhci_hcd."

func dirName(index int) string { return dirPrefix + strconv.Itoa(index) }

// indexOf is the inverse of dirName, -1 for other names.
func indexOf(name string) int {
	digits, _ := strings.CutPrefix(name, dirPrefix)
	index, err := strconv.Atoi(digits)
	if err != nil || dirName(index) != name {
		return -1
	}
	return index
}

// A mint makes numbers and names that tell nothing of what they are made of but
// to itself.
type mint struct{ block cipher.Block }

func newMint() (mint, error) {
	var key [16]byte
	if _, err := rand.Read(key[:]); err != nil {
		return mint{}, err
	}
	block, err := aes.NewCipher(key[:])
	return mint{block}, err
}

// What the second half of a block is, so that names and inodes have nothing in
// common.
const (
	forName  = 0
	forInode = 1
	forID    = 2 // and the rounds
)

// id returns the number by which the kernel knows a node. It can be asked for
// that number from inside a container, with name_to_handle_at, and for what has a
// number, with open_by_handle_at.
func (m mint) id(n node) uint64 {
	if n == nodeRoot {
		return uint64(n) // FUSE_ROOT_ID
	}
	left, right := uint32(n>>32), uint32(n)
	for round := range idRounds {
		left, right = right, left^m.scramble(right, round)
	}
	return uint64(left)<<32 | uint64(right)
}

// ofID is the inverse of id.
func (m mint) ofID(id uint64) node {
	if id == uint64(nodeRoot) {
		return nodeRoot
	}
	left, right := uint32(id>>32), uint32(id)
	for round := idRounds - 1; round >= 0; round-- {
		left, right = right^m.scramble(left, round), left
	}
	return node(uint64(left)<<32 | uint64(right))
}

// idRounds make a random permutation of a Feistel network.
const idRounds = 4

func (m mint) scramble(half uint32, round int) uint32 {
	b := m.encrypt(node(half), forID+uint64(round))
	return binary.BigEndian.Uint32(b[:])
}

func (m mint) encrypt(n node, purpose uint64) (b [aes.BlockSize]byte) {
	binary.BigEndian.PutUint64(b[:8], uint64(n))
	binary.BigEndian.PutUint64(b[8:], purpose)
	m.block.Encrypt(b[:], b[:])
	return b
}

// inode returns the inode number of a node.
func (m mint) inode(n node) uint64 {
	b := m.encrypt(n, forInode)
	return binary.BigEndian.Uint64(b[:])
}

// name returns the name of a node.
func (m mint) name(n node) string {
	b := m.encrypt(n, forName)
	return hex.EncodeToString(b[:])
}

// node returns the node of a name, 0 for what was not made by m.
func (m mint) node(name string) node {
	var b [aes.BlockSize]byte
	if len(name) != hex.EncodedLen(len(b)) || strings.ToLower(name) != name {
		return 0
	}
	if _, err := hex.Decode(b[:], []byte(name)); err != nil {
		return 0
	}
	m.block.Decrypt(b[:], b[:])
	if binary.BigEndian.Uint64(b[8:]) != forName {
		return 0
	}
	return node(binary.BigEndian.Uint64(b[:8]))
}

// path returns where a directory of a controller is in the tree.
func (m mint) path(c *controller.Controller, k kind) string {
	if k == kindNamelessDir {
		return fmt.Sprintf("c/%s", m.name(nodeOf(c, k)))
	}
	return "devices/platform/" + dirName(c.Index())
}
