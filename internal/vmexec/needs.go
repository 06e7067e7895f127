package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
)

// needs is what the test files of a package say about its guest.
type needs struct {
	sources []string // the test files
	tests   []string // names of the functions in them
	modules []string
	trees   []string // of extraTrees
	files   []carried
	env     []string
	qemu    []string
	memory  string
}

// A carried file or tree of the host, at dst in the guest.
type carried struct{ src, dst string }

const directivePrefix = "//vmexec:"

// readNeeds reads the test files in dir, the directory of the tested package.
func readNeeds(dir string) (needs, error) {
	n := needs{memory: "512M"}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return n, err
	}
	fset := token.NewFileSet()
	for _, file := range files {
		n.sources = append(n.sources, file)
		f, err := parser.ParseFile(fset, file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return n, err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil {
				n.tests = append(n.tests, fn.Name.Name)
			}
		}
		for _, group := range f.Comments {
			for _, comment := range group.List {
				if err := n.directive(dir, comment.Text); err != nil {
					return n, fmt.Errorf("%s: %w", fset.Position(comment.Pos()), err)
				}
			}
		}
	}
	return n, nil
}

func (n *needs) directive(dir, comment string) error {
	text, ok := strings.CutPrefix(comment, directivePrefix)
	if !ok {
		return nil
	}
	verb, rest, _ := strings.Cut(text, " ")
	args := strings.Fields(rest)
	if len(args) == 0 {
		return fmt.Errorf("%s%s without arguments", directivePrefix, verb)
	}
	switch verb {
	case "modules":
		n.modules = append(n.modules, args...)
	case "tree":
		n.trees = append(n.trees, args...)
	case "env":
		n.env = append(n.env, args...)
	case "qemu":
		n.qemu = append(n.qemu, args...)
	case "memory":
		if len(args) != 1 {
			return fmt.Errorf("%smemory takes one size", directivePrefix)
		}
		n.memory = args[0]
	case "file":
		for _, arg := range args {
			src, dst, _ := strings.Cut(arg, ":")
			src = resolvePath(dir, src)
			if dst == "" {
				dst = src
			}
			if !filepath.IsAbs(dst) {
				return fmt.Errorf("%q is no absolute path", dst)
			}
			n.files = append(n.files, carried{src, dst})
		}
	default:
		return fmt.Errorf("%s%s is none of modules, env, file, memory, qemu, tree", directivePrefix, verb)
	}
	return nil
}

// nothingToRun says that no test function can match the test binary's flags, so
// that no guest need be booted to find that out.
func (n *needs) nothingToRun(flags testFlags) bool {
	if len(n.sources) == 0 || flags["test.run"] == "" || flags["test.bench"] != "" || flags["test.fuzz"] != "" || flags["test.list"] != "" {
		return false
	}
	top, _, _ := strings.Cut(flags["test.run"], "/")
	pattern, err := regexp.Compile(top)
	if err != nil {
		return false // the test binary says it better
	}
	for _, name := range n.tests {
		if pattern.MatchString(name) {
			return false
		}
	}
	return true
}
