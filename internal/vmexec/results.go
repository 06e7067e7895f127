package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// writeTar writes what exists of paths, files and directories, by their
// absolute names.
func writeTar(w io.Writer, paths []string) error {
	archive := tar.NewWriter(w)
	for _, root := range paths {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if err := archive.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(data))}); err != nil {
				return err
			}
			_, err = archive.Write(data)
			return err
		})
		if err != nil {
			return err
		}
	}
	return archive.Close()
}

// untar writes the files of an archive that are, or are below, one of paths. An
// archive that was never begun is no error.
func untar(r io.Reader, paths []string) error {
	archive := tar.NewReader(r)
	for {
		head, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("results of the guest: %w", err)
		}
		name := filepath.Clean(head.Name)
		if !slices.ContainsFunc(paths, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") }) {
			return fmt.Errorf("results of the guest: nobody asked for %s", head.Name)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return fmt.Errorf("results of the guest: %w", err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
}
