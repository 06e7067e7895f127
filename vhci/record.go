//go:build linux

package vhci

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/google/renameio/v2"
)

// RecordsDir is where the stock tools keep their records.
const RecordsDir = "/var/run/vhci_hcd"

// Records is a directory of records, a file for each attached port, as the stock
// tools write and read them. The zero Records is theirs, [RecordsDir].
//
// A record is a note and no proof: anyone who can write the directory may have
// written it, it outlives the attachment, and it is not there at all for what
// other programs attached.
type Records struct {
	Dir string
}

// path names the file for a port: the stock tools' port%d for controller 0,
// which is the only one they know, and port<controller>-<port> for the others.
func (r Records) path(controller, port int) string {
	dir := r.Dir
	if dir == "" {
		dir = RecordsDir
	}
	name := "port" + strconv.Itoa(port)
	if controller != 0 {
		name = fmt.Sprintf("port%d-%d", controller, port)
	}
	return filepath.Join(dir, name)
}

// Write writes the record of a port in the place of the one it had, if any. It
// makes the directory if need be, for its owner only.
func (r Records) Write(controller, port int, rec Record) error {
	path := r.path(controller, port)
	if err := rec.Check(); err != nil {
		return recordError("write record", path, port, err)
	}
	text := fmt.Sprintf("%s %s %s\n", rec.Host, rec.Port, rec.BusID)
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return recordError("write record", path, port, err)
	}
	if err := renameio.WriteFile(path, []byte(text), 0o600); err != nil {
		return recordError("write record", path, port, err)
	}
	return nil
}

// Read reads the record of a port. The error is [fs.ErrNotExist] if there is
// none. What it returns can be printed: it has no white space and no control
// characters.
func (r Records) Read(controller, port int) (Record, error) {
	path := r.path(controller, port)
	rec, err := readRecord(path)
	if err != nil {
		return Record{}, recordError("read record", path, port, err)
	}
	return rec, nil
}

// Remove removes the record of a port. That there is none is no error.
func (r Records) Remove(controller, port int) error {
	path := r.path(controller, port)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return recordError("remove record", path, port, err)
	}
	return nil
}

func recordError(op, path string, port int, err error) error {
	return &OpError{Op: op, Path: path, Port: port, Err: bare(err)}
}

func readRecord(path string) (Record, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	text, err := readBounded(f, "record")
	if err != nil {
		return Record{}, err
	}
	line, ok := bytes.CutSuffix(text, []byte("\n"))
	if !ok {
		return Record{}, syntaxf("the record does not end in a newline: the stock tool cuts it at 100 bytes")
	}
	fields := strings.Split(string(line), " ")
	if len(fields) != 3 {
		return Record{}, syntaxf("the record is not \"host port busid\"")
	}
	rec := Record{Host: fields[0], Port: fields[1], BusID: fields[2]}
	return rec, rec.Check()
}

// Check refuses what would not come back as it was from a file, and what a
// terminal should not see.
func (rec Record) Check() error {
	for _, field := range [...]struct{ what, text string }{
		{"host", rec.Host},
		{"port", rec.Port},
		{"busid", rec.BusID},
	} {
		if field.text == "" {
			return syntaxf("the %s is empty", field.what)
		}
		if !utf8.ValidString(field.text) || strings.ContainsFunc(field.text, unwanted) {
			return syntaxf("the %s has a space or a character that cannot be printed", field.what)
		}
	}
	if len(rec.BusID) > maxBusID {
		return syntaxf("the busid is longer than %d bytes", maxBusID)
	}
	if n := len(rec.Host) + len(rec.Port) + len(rec.BusID) + len("  \n"); n > maxFile {
		return syntaxf("the record is %d bytes long, more than %d", n, maxFile)
	}
	return nil
}

func unwanted(c rune) bool { return c == ' ' || !unicode.IsPrint(c) }
