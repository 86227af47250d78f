package cli_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// functionStore is a fake control plane that remembers one function.
type functionStore struct {
	function *mayflyv1.Function
	// states are what GetFunction says of a function, in turn; the last one stays.
	states  []mayflyv1.FunctionState
	uploads [][]byte
	// damage changes what is uploaded.
	damage func([]byte) []byte
}

func (s *functionStore) register(f *fakeAPI) {
	on(f, mayflyv1.FunctionService_GetFunction_FullMethodName, s.get)
	on(f, mayflyv1.FunctionService_CreateFunction_FullMethodName, s.create)
	on(f, mayflyv1.FunctionService_UpdateFunctionCode_FullMethodName, s.updateCode)
	on(f, mayflyv1.FunctionService_UpdateFunctionConfiguration_FullMethodName, s.updateConfiguration)
	on(f, mayflyv1.FunctionService_PutFunctionUrl_FullMethodName, s.putURL)
	on(f, mayflyv1.VersionService_PublishVersion_FullMethodName, func(*mayflyv1.PublishVersionRequest) (*mayflyv1.PublishVersionResponse, error) {
		s.function.LastVersion++
		return &mayflyv1.PublishVersionResponse{Version: &mayflyv1.Version{Number: s.function.GetLastVersion()}}, nil
	})
	f.handlers[mayflyv1.FunctionService_UploadCode_FullMethodName] = s.upload
}

func (s *functionStore) get(q *mayflyv1.GetFunctionRequest) (*mayflyv1.GetFunctionResponse, error) {
	if s.function == nil {
		return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND, "function %s does not exist", q.GetName())
	}
	if len(s.states) > 0 {
		s.function.State = s.states[0]
		if len(s.states) > 1 {
			s.states = s.states[1:]
		}
	}
	r := &mayflyv1.GetFunctionResponse{Function: s.function}
	if s.function.GetUrl() != nil {
		r.Url = "http://127.0.0.1:7080/fn/" + s.function.GetName() + "/"
	}
	return r, nil
}

func (s *functionStore) create(q *mayflyv1.CreateFunctionRequest) (*mayflyv1.CreateFunctionResponse, error) {
	s.function = &mayflyv1.Function{
		Meta: meta(1), Name: q.GetName(), Configuration: q.GetConfiguration(), Url: q.GetUrl(), Code: &mayflyv1.Code{Digest: q.GetCodeDigest()},
		State: mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE,
	}
	return &mayflyv1.CreateFunctionResponse{Function: s.function}, nil
}

func (s *functionStore) updateCode(q *mayflyv1.UpdateFunctionCodeRequest) (*mayflyv1.UpdateFunctionCodeResponse, error) {
	s.function.Code = &mayflyv1.Code{Digest: q.GetCodeDigest()}
	return &mayflyv1.UpdateFunctionCodeResponse{Function: s.function}, nil
}

func (s *functionStore) updateConfiguration(q *mayflyv1.UpdateFunctionConfigurationRequest) (*mayflyv1.UpdateFunctionConfigurationResponse, error) {
	if m := q.GetConfiguration().GetMemoryMb(); m != 0 {
		s.function.Configuration.MemoryMb = m
	}
	return &mayflyv1.UpdateFunctionConfigurationResponse{Function: s.function}, nil
}

func (s *functionStore) putURL(q *mayflyv1.PutFunctionUrlRequest) (*mayflyv1.PutFunctionUrlResponse, error) {
	s.function.Url = q.GetUrl()
	return &mayflyv1.PutFunctionUrlResponse{Function: s.function}, nil
}

func (s *functionStore) upload(stream grpc.ServerStream) error {
	var data []byte
	var first mayflyv1.UploadCodeRequest
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	for {
		var m mayflyv1.UploadCodeRequest
		err := stream.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		data = append(data, m.GetChunk()...)
	}
	if first.GetChunk() != nil || first.GetSizeBytes() != int64(len(data)) {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE, "%d bytes were announced, %d came", first.GetSizeBytes(), len(data))
	}
	if s.damage != nil {
		data = s.damage(data)
	}
	s.uploads = append(s.uploads, data)
	sum := sha256.Sum256(data)
	return stream.SendMsg(&mayflyv1.UploadCodeResponse{Code: &mayflyv1.Code{Digest: "sha256:" + hex.EncodeToString(sum[:])}})
}

func TestDeployCreatesThenUpdates(t *testing.T) {
	b := newBench(t)
	store := &functionStore{}
	store.register(b.api)
	code := b.file("hello.py", "def handler(event, context): return 1\n")
	b.transcript("deploy", [][]string{
		{"deploy", code},
		{"deploy", code, "--runtime", "python3.11"},
		{"deploy", code, "--runtime", "python3.11", "--handler", "hello.handler", "--url", "key", "--env", "A=1", "--timeout", "5s"},
		{"deploy", code},
		{"deploy", code, "--memory", "256", "--publish", "--output", "json"},
		{"deploy", code, "--url", "none"},
		{"deploy", code, "--url", "none", "--quiet"},
		{"deploy", code, "--url", "open"},
		{"deploy", b.dir + "/none.py"},
		{"deploy"},
	}...)
	if len(store.uploads) != 1 {
		t.Errorf("%d uploads of the same code, want 1", len(store.uploads))
	}
	b.file("hello.py", "def handler(event, context): return 2\n")
	if o := b.run("deploy", code); o.code != 0 || len(store.uploads) != 2 {
		t.Errorf("changed code: %+v with %d uploads, want 2", o, len(store.uploads))
	}
}

func TestDeployOfOneFileForProvidedIsBootstrap(t *testing.T) {
	b := newBench(t)
	store := &functionStore{}
	store.register(b.api)
	if o := b.run("deploy", b.file("server", "\x7fELF"), "--name", "fast", "--runtime", "provided"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	if h := store.function.GetConfiguration().GetHandler(); h != "bootstrap" {
		t.Errorf("handler %q", h)
	}
	z, err := zip.NewReader(bytes.NewReader(store.uploads[0]), int64(len(store.uploads[0])))
	if err != nil {
		t.Fatal(err)
	}
	if f := z.File[0]; len(z.File) != 1 || f.Name != "bootstrap" || f.Mode()&0o111 == 0 {
		t.Errorf("got %s %v", f.Name, f.Mode())
	}
}

func TestDeployWaits(t *testing.T) {
	const (
		pending = mayflyv1.FunctionState_FUNCTION_STATE_PENDING
		active  = mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE
		failed  = mayflyv1.FunctionState_FUNCTION_STATE_FAILED
	)
	for name, c := range map[string]struct {
		states []mayflyv1.FunctionState
		args   []string
		code   int
		says   string
	}{
		"until active":         {states: []mayflyv1.FunctionState{pending, pending, active}, code: 0, says: "Active"},
		"until failed":         {states: []mayflyv1.FunctionState{pending, failed}, code: 1, says: "function hello failed: no node took it"},
		"not at all":           {states: []mayflyv1.FunctionState{pending}, args: []string{"--wait=false"}, code: 0, says: "Created"},
		"until the time is up": {states: []mayflyv1.FunctionState{pending}, args: []string{"--wait-timeout", "-1s"}, code: 6, says: "still pending"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			store := &functionStore{states: c.states}
			store.register(b.api)
			on(b.api, mayflyv1.FunctionService_CreateFunction_FullMethodName, func(q *mayflyv1.CreateFunctionRequest) (*mayflyv1.CreateFunctionResponse, error) {
				r, err := store.create(q)
				store.function.StateReason = "no node took it"
				return r, err
			})
			args := append([]string{"deploy", b.file("hello.py", "x"), "--runtime", "python3.11", "--handler", "hello.h"}, c.args...)
			o := b.run(args...)
			if o.code != c.code || !strings.Contains(o.stdout+o.stderr, c.says) {
				t.Errorf("got %+v, want code %d and %q", o, c.code, c.says)
			}
		})
	}
}

func TestDeployFindsDamage(t *testing.T) {
	b := newBench(t)
	store := &functionStore{damage: func(d []byte) []byte { return d[1:] }}
	store.register(b.api)
	o := b.run("deploy", b.file("hello.py", "x"), "--runtime", "python3.11", "--handler", "hello.h")
	if o.code != 1 || !strings.Contains(o.stderr, "arrived damaged") || store.function != nil {
		t.Errorf("got %+v, function %v", o, store.function)
	}
}

func TestDeployOfManyChunks(t *testing.T) {
	b := newBench(t)
	store := &functionStore{}
	store.register(b.api)
	// Digests don't compress, so the package has several chunks.
	var content strings.Builder
	sum := sha256.Sum256(nil)
	for range 40000 {
		sum = sha256.Sum256(sum[:])
		content.Write(sum[:])
	}
	if o := b.run("deploy", b.file("big.py", content.String()), "--runtime", "python3.11", "--handler", "big.h"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	z, err := zip.NewReader(bytes.NewReader(store.uploads[0]), int64(len(store.uploads[0])))
	if err != nil {
		t.Fatal(err)
	}
	f, err := z.Open("big.py")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || string(got) != content.String() {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
}

func TestFunctionDownload(t *testing.T) {
	b := newBench(t)
	onStream(b.api, mayflyv1.FunctionService_DownloadCode_FullMethodName, func(q *mayflyv1.DownloadCodeRequest, s grpc.ServerStream) error {
		if q.GetName() != "hello" {
			return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND, "no such function")
		}
		for _, c := range []string{"PK", "zip"} {
			if err := s.SendMsg(&mayflyv1.DownloadCodeResponse{Chunk: []byte(c)}); err != nil {
				return err
			}
		}
		return nil
	})
	b.transcript("download", [][]string{
		{"function", "download", "hello", "--file", "-"},
		{"function", "download", "hello", "--file", b.dir + "/out.zip"},
		{"function", "download", "nope", "--file", b.dir + "/nope.zip"},
		{"function", "download", "hello"},
		{"function", "download", "hello", "--file", b.dir + "/no/such/dir.zip"},
	}...)
	if _, err := os.Stat(b.dir + "/nope.zip"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failed download left a file: %v", err)
	}
}
