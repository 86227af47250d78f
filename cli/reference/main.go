// Package main writes the reference in docs/reference: of the commands from the commands themselves, of the API from
// the comments of its proto files. `make generate` runs it.
//
// What belongs here: turning both into Markdown. What does not: text that isn't said at its source.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra/doc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/mayfly-faas/mayfly/cli"
	"github.com/mayfly-faas/mayfly/cli/host"
)

func main() {
	descriptors := flag.String("descriptors", "", "file descriptor set with comments, as `buf build` makes it")
	out := flag.String("out", "docs/reference", "directory to write to")
	flag.Parse()
	if err := errors.Join(writeCLI(filepath.Join(*out, "cli")), writeAPI(*descriptors, filepath.Join(*out, "api.md"))); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

// namelessHost keeps this machine's name out of the defaults of flags.
type namelessHost struct{ host.Local }

func (namelessHost) Hostname() string { return "HOSTNAME" }

// writeCLI writes one page a command, and removes those of commands that are gone.
func writeCLI(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("write the command reference: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the command reference: %w", err)
	}
	app := &cli.App{Host: namelessHost{}, Getenv: func(string) string { return "" }}
	root := app.Command()
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	if err := doc.GenMarkdownTree(root, dir); err != nil {
		return fmt.Errorf("write the command reference: %w", err)
	}
	return nil
}

func writeAPI(descriptors, file string) error {
	data, err := os.ReadFile(descriptors)
	if err != nil {
		return fmt.Errorf("read descriptors: %w", err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(data, &set); err != nil {
		return fmt.Errorf("read descriptors: %w", err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return fmt.Errorf("read descriptors: %w", err)
	}
	var page strings.Builder
	describe(&page, files)
	if err := os.WriteFile(file, []byte(page.String()), 0o644); err != nil {
		return fmt.Errorf("write the API reference: %w", err)
	}
	return nil
}
