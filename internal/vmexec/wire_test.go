package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFrames(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789"), frameMax)
	var wire bytes.Buffer
	for _, part := range []struct {
		kind byte
		data []byte
	}{{outputFrame, []byte("a\n")}, {outputFrame, nil}, {outputFrame, big}, {resultFrame, big}, {exitFrame, []byte{3}}} {
		if n, err := (frameWriter{&wire, part.kind}).Write(part.data); n != len(part.data) || err != nil {
			t.Fatal(n, err)
		}
	}
	whole := wire.Bytes()
	var output, results bytes.Buffer
	status, err := readFrames(&wire, &output, &results)
	if status != 3 || err != nil || output.String() != "a\n"+string(big) || results.String() != string(big) {
		t.Errorf("status %d, %v, %d bytes of output, %d of results", status, err, output.Len(), results.Len())
	}

	for _, cut := range []int{0, 1, frameHead, frameHead + 1, len(whole) - 1} {
		_, err := readFrames(bytes.NewReader(whole[:cut]), io.Discard, io.Discard)
		if err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Errorf("cut off after %d bytes: error %v", cut, err)
		}
	}
}

func TestBadFrames(t *testing.T) {
	for name, wire := range map[string]string{
		"too long":           "o\xff\xff\xff\xff",
		"unknown kind":       "q\x00\x00\x00\x00",
		"exit without data":  "x\x00\x00\x00\x00",
		"exit with too much": "x\x00\x00\x00\x02ab",
	} {
		_, err := readFrames(strings.NewReader(wire), io.Discard, io.Discard)
		if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestFramesEndWithTheirReader(t *testing.T) {
	var wire bytes.Buffer
	frameWriter{&wire, outputFrame}.Write([]byte("a"))
	gone := errors.New("gone")
	_, err := readFrames(&wire, writerFunc(func([]byte) (int, error) { return 0, gone }), io.Discard)
	if !errors.Is(err, gone) {
		t.Errorf("error %v, want %v", err, gone)
	}
}

func TestResultsArchive(t *testing.T) {
	dir := t.TempDir()
	profile, tree, missing := filepath.Join(dir, "profile"), filepath.Join(dir, "tree"), filepath.Join(dir, "missing")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	files := []string{profile, filepath.Join(tree, "a"), filepath.Join(tree, "b")}
	for _, file := range files {
		if err := os.WriteFile(file, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var archive bytes.Buffer
	if err := writeTar(&archive, []string{profile, tree, missing}); err != nil {
		t.Fatal(err)
	}
	whole := archive.Bytes()
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}

	if err := untar(bytes.NewReader(whole), []string{tree}); err == nil || !strings.Contains(err.Error(), "nobody asked for "+profile) {
		t.Errorf("a file nobody asked for: error %v", err)
	}
	if _, err := os.Stat(profile); err == nil {
		t.Error("a file nobody asked for was written")
	}
	if err := untar(bytes.NewReader(whole), []string{profile, tree, missing}); err != nil {
		t.Error(err)
	}
	for _, file := range files {
		if got, err := os.ReadFile(file); string(got) != file || err != nil {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	if err := untar(bytes.NewReader(nil), nil); err != nil {
		t.Errorf("no archive: %v", err)
	}
	if err := untar(bytes.NewReader(whole[:520]), []string{profile, tree}); err == nil {
		t.Error("a truncated archive is no error")
	}
}
