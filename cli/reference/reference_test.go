package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoregistry"
)

func TestCommandReferenceIsUpToDate(t *testing.T) {
	const kept = "../../docs/reference/cli"
	dir := t.TempDir()
	if err := writeCLI(dir); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadDir(kept)
	if err != nil || len(old) != len(fresh) {
		t.Fatalf("%d pages are kept, %d would be written (run make generate): %v", len(old), len(fresh), err)
	}
	for _, e := range fresh {
		want, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(kept, e.Name()))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s is not up to date: run make generate (%v)", e.Name(), err)
		}
	}
}

// TestAPIReferenceNamesEverything checks the tables; comments are not in the binary, so they are check-generated's.
func TestAPIReferenceNamesEverything(t *testing.T) {
	var page strings.Builder
	describe(&page, protoregistry.GlobalFiles)
	kept, err := os.ReadFile("../../docs/reference/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(page.String()) {
		line = strings.TrimRight(strings.TrimSpace(line), "| ")
		if !strings.Contains(string(kept), line) {
			t.Errorf("docs/reference/api.md lacks %q: run make generate", line)
		}
	}
	for _, want := range []string{
		"| Invoke | [InvokeRequest](#invokerequest) | [InvokeResponse](#invokeresponse) | invoker |",
		"| UploadCode | stream of [UploadCodeRequest](#uploadcoderequest) | [UploadCodeResponse](#uploadcoderesponse) | developer |",
		"| `environment` | map of string to string |",
		"| `reserved_concurrency` | optional int32 |",
		"| `ERROR_REASON_DISK_FULL` | 54 |",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}
