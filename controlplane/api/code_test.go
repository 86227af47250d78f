package api_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func upload(t *testing.T, c *client, messages ...*mayflyv1.UploadCodeRequest) (*mayflyv1.Code, error) {
	t.Helper()
	stream, err := c.function.UploadCode(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	response, err := stream.CloseAndRecv()
	return response.GetCode(), err
}

func TestUploadUseAndDownload(t *testing.T) {
	b := newBench(t)
	zip := zipOf(t, entry{name: "hello.py", content: strings.Repeat("# padding\n", 100_000)}, entry{name: "data.bin", content: noise(1 << 20)})
	messages := []*mayflyv1.UploadCodeRequest{{SizeBytes: int64(len(zip))}}
	for part := range slices.Chunk(zip, 300_000) {
		messages = append(messages, &mayflyv1.UploadCodeRequest{Chunk: part})
	}
	code, err := upload(t, b.admin, messages...)
	if err != nil || code.GetSizeBytes() != int64(len(zip)) || code.GetUnpackedSizeBytes() != 1_000_000+1<<20 {
		t.Fatalf("%v, %v", code, err)
	}
	r := createRequest(t, "f")
	r.Code = &mayflyv1.CreateFunctionRequest_CodeDigest{CodeDigest: code.GetDigest()}
	created, err := b.admin.function.CreateFunction(testContext(t), r)
	if err != nil || !proto.Equal(created.GetFunction().GetCode(), code) {
		t.Fatalf("%v, %v", created, err)
	}
	if _, err := b.admin.version.PublishVersion(testContext(t), &mayflyv1.PublishVersionRequest{Function: "f"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.admin.alias.CreateAlias(testContext(t), &mayflyv1.CreateAliasRequest{Function: "f", Name: "live", Version: "1"}); err != nil {
		t.Fatal(err)
	}
	for _, qualifier := range []string{"", "$LATEST", "1", "live"} {
		got, err := download(t, b.admin, "f", qualifier)
		if err != nil || !bytes.Equal(got, zip) {
			t.Errorf("%q: %d bytes, %v", qualifier, len(got), err)
		}
	}
	for qualifier, reason := range map[string]mayflyv1.ErrorReason{"2": noVersion, "dead": noAlias, "a/b": invalidArgument, "01": invalidArgument, "-1": noAlias} {
		_, err := download(t, b.admin, "f", qualifier)
		wantReason(t, qualifier, err, reason, qualifier)
	}
}

// noise is text that deflate can't shrink much.
func noise(n int) string {
	out := make([]byte, n)
	x := uint32(1)
	for i := range out {
		x = x*1664525 + 1013904223
		out[i] = byte(x >> 24)
	}
	return string(out)
}

func download(t *testing.T, c *client, name, qualifier string) ([]byte, error) {
	t.Helper()
	stream, err := c.function.DownloadCode(testContext(t), &mayflyv1.DownloadCodeRequest{Name: name, Qualifier: qualifier})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		got = append(got, response.GetChunk()...)
	}
}

func TestBadUploadsLeaveNothing(t *testing.T) {
	b := newBench(t)
	type message = mayflyv1.UploadCodeRequest
	good := helloZip(t)
	for name, test := range map[string]struct {
		messages []*message
		reason   mayflyv1.ErrorReason
	}{
		"nothing":           {nil, badCode},
		"no content":        {[]*message{{}}, badCode},
		"no zip":            {[]*message{{}, {Chunk: []byte("hello")}}, badCode},
		"bad zip":           {[]*message{{}, {Chunk: zipOf(t, entry{name: "/abs"})}}, badCode},
		"negative size":     {[]*message{{SizeBytes: -1}}, invalidArgument},
		"too large by size": {[]*message{{SizeBytes: 262_144_001}}, tooLargeCode},
		"less than said":    {[]*message{{SizeBytes: int64(len(good)) + 1}, {Chunk: good}}, badCode},
		"more than said":    {[]*message{{SizeBytes: int64(len(good)) - 1}, {Chunk: good}}, badCode},
		"large chunk":       {[]*message{{}, {Chunk: make([]byte, 1<<20+1)}}, invalidArgument},
		"size later":        {[]*message{{}, {SizeBytes: 5, Chunk: good}}, invalidArgument},
	} {
		_, err := upload(t, b.admin, test.messages...)
		wantReason(t, name, err, test.reason)
		if n := b.blobs.count(t); n != 0 {
			t.Fatalf("%s: %d blobs were left behind", name, n)
		}
	}
	// A client that goes away in the middle.
	stream, err := b.admin.function.UploadCode(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&message{Chunk: good[:50]}); err != nil {
		t.Fatal(err)
	}
}
