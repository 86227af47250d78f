package e2e

import (
	"archive/zip"
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// reasonOf is the reason of the ErrorInfo detail, as a client in any language sees it.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func wantFault(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || reasonOf(err) != reason {
		t.Errorf("got %v %s (%v), want %v %s", status.Code(err), reasonOf(err), err, code, reason)
	}
	if status.Convert(err).Message() == "" {
		t.Error("no message")
	}
}

func valid() *mayflyv1.CreateFunctionRequest {
	return &mayflyv1.CreateFunctionRequest{
		Name:          "never",
		Configuration: &mayflyv1.FunctionConfiguration{Runtime: "python3.11", Handler: "main.handler"},
	}
}

func TestInvalidFunctionsAreRefused(t *testing.T) {
	good := zipOf(t, map[string]string{"main.py": "def handler(e, c): return 1"})
	for name, c := range map[string]struct {
		change func(*mayflyv1.CreateFunctionRequest)
		reason string
	}{
		"name":        {func(r *mayflyv1.CreateFunctionRequest) { r.Name = "no spaces" }, "INVALID_NAME"},
		"long name":   {func(r *mayflyv1.CreateFunctionRequest) { r.Name = strings.Repeat("n", 65) }, "INVALID_NAME"},
		"handler":     {func(r *mayflyv1.CreateFunctionRequest) { r.Configuration.Handler = "nodot" }, "INVALID_HANDLER"},
		"runtime":     {func(r *mayflyv1.CreateFunctionRequest) { r.Configuration.Runtime = "cobol85" }, "INVALID_RUNTIME"},
		"memory":      {func(r *mayflyv1.CreateFunctionRequest) { r.Configuration.MemoryMb = 64 }, "INVALID_MEMORY"},
		"much memory": {func(r *mayflyv1.CreateFunctionRequest) { r.Configuration.MemoryMb = 10241 }, "INVALID_MEMORY"},
		"time-out":    {func(r *mayflyv1.CreateFunctionRequest) { r.Configuration.Timeout = durationpb.New(901 * time.Second) }, "INVALID_TIMEOUT"},
		"no code":     {func(r *mayflyv1.CreateFunctionRequest) { r.Code = nil }, "INVALID_ARGUMENT"},
		"no zip": {func(r *mayflyv1.CreateFunctionRequest) {
			r.Code = &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: []byte("PK not a zip")}
		}, "INVALID_CODE"},
		"unknown code": {func(r *mayflyv1.CreateFunctionRequest) {
			r.Code = &mayflyv1.CreateFunctionRequest_CodeDigest{CodeDigest: "sha256:" + strings.Repeat("0", 64)}
		}, "CODE_NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			r := valid()
			r.Code = &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: good}
			c.change(r)
			_, err := shared.functions().CreateFunction(t.Context(), r)
			code := codes.InvalidArgument
			if c.reason == "CODE_NOT_FOUND" {
				code = codes.NotFound
			}
			wantFault(t, err, code, c.reason)
		})
	}
	_, err := shared.functions().GetFunction(t.Context(), &mayflyv1.GetFunctionRequest{Name: "never"})
	wantFault(t, err, codes.NotFound, "FUNCTION_NOT_FOUND")
}

func rawZip(t *testing.T, entries func(w *zip.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	entries(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func entry(t *testing.T, w *zip.Writer, name string, mode os.FileMode, content []byte) {
	t.Helper()
	h := &zip.FileHeader{Name: name, Method: zip.Deflate}
	h.SetMode(mode)
	f, err := w.CreateHeader(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
}

func TestDangerousPackagesAreRefused(t *testing.T) {
	one := func(name string, mode os.FileMode, content string) []byte {
		return rawZip(t, func(w *zip.Writer) { entry(t, w, name, mode, []byte(content)) })
	}
	bomb := rawZip(t, func(w *zip.Writer) {
		zeros := make([]byte, 1<<20)
		h := &zip.FileHeader{Name: "zeros", Method: zip.Deflate}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		for range 260 {
			if _, err := f.Write(zeros); err != nil {
				t.Fatal(err)
			}
		}
	})
	for name, data := range map[string][]byte{
		"bomb":          bomb,
		"absolute":      one("/etc/passwd", 0o644, "x"),
		"dot dot":       one("a/../../b", 0o644, "x"),
		"link outside":  one("link", 0o777|os.ModeSymlink, "../../etc/passwd"),
		"absolute link": one("link", 0o777|os.ModeSymlink, "/etc/passwd"),
		"device":        one("dev", 0o644|os.ModeDevice, ""),
		"empty":         rawZip(t, func(*zip.Writer) {}),
	} {
		t.Run(name, func(t *testing.T) {
			r := valid()
			r.Code = &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: data}
			_, err := shared.functions().CreateFunction(t.Context(), r)
			if reason := reasonOf(err); status.Code(err) != codes.InvalidArgument || reason != "INVALID_CODE" && reason != "CODE_TOO_LARGE" {
				t.Errorf("%v %s", err, reason)
			}
		})
	}
}

func TestUnknownThings(t *testing.T) {
	shared.deploy(t, python("known", "def handler(e, c): return 1"))
	for _, c := range []struct{ function, qualifier, reason string }{
		{"unknown", "", "FUNCTION_NOT_FOUND"},
		{"known", "7", "VERSION_NOT_FOUND"},
		{"known", "alias", "ALIAS_NOT_FOUND"},
	} {
		_, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: c.function, Qualifier: c.qualifier})
		wantFault(t, err, codes.NotFound, c.reason)
	}
	_, err := shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "known", Payload: []byte("{no json")})
	wantFault(t, err, codes.InvalidArgument, "INVALID_PAYLOAD")
	_, err = shared.invocations().Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "known", Payload: []byte(`"` + strings.Repeat("x", 6291556) + `"`)})
	wantFault(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE")
}

func TestKeysAndRoles(t *testing.T) {
	keys := mayflyv1.NewAccessKeyServiceClient(shared.conn)
	for _, c := range []struct {
		id, secret string
	}{{"", ""}, {shared.key.ID, "wrong"}, {"AKIAAAAAAAAAAAAAAAAA", "wrong"}} {
		conn, err := shared.dial(c.id, c.secret)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = mayflyv1.NewFunctionServiceClient(conn).ListFunctions(t.Context(), &mayflyv1.ListFunctionsRequest{})
		wantFault(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
	}
	for role, may := range map[mayflyv1.Role][3]bool{ // list functions, invoke, delete
		mayflyv1.Role_ROLE_READER:    {true, false, false},
		mayflyv1.Role_ROLE_INVOKER:   {false, true, false},
		mayflyv1.Role_ROLE_DEVELOPER: {true, true, true},
	} {
		made, err := keys.CreateAccessKey(t.Context(), &mayflyv1.CreateAccessKeyRequest{Namespace: "default", Role: role})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := shared.dial(made.GetAccessKey().GetId(), made.GetSecret())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		functions := mayflyv1.NewFunctionServiceClient(conn)
		_, list := functions.ListFunctions(t.Context(), &mayflyv1.ListFunctionsRequest{})
		_, invoke := mayflyv1.NewInvocationServiceClient(conn).Invoke(t.Context(), &mayflyv1.InvokeRequest{Function: "nobody"})
		_, del := functions.DeleteFunction(t.Context(), &mayflyv1.DeleteFunctionRequest{Name: "nobody"})
		for i, err := range []error{list, invoke, del} {
			if allowed := status.Code(err) != codes.PermissionDenied; allowed != may[i] {
				t.Errorf("%v, call %d: %v", role, i, err)
			}
		}
		_, err = functions.ListFunctions(t.Context(), &mayflyv1.ListFunctionsRequest{Namespace: "elsewhere"})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%v of default listed another namespace: %v", role, err)
		}
		if _, err := keys.DeleteAccessKey(t.Context(), &mayflyv1.DeleteAccessKeyRequest{Id: made.GetAccessKey().GetId()}); err != nil {
			t.Error(err)
		}
		_, err = functions.ListFunctions(t.Context(), &mayflyv1.ListFunctionsRequest{})
		wantFault(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
	}
}

func TestRevisionConflict(t *testing.T) {
	shared.deploy(t, python("rev", "def handler(e, c): return 1"))
	f := shared.waitActive(t, "rev")
	update := func(revision uint64, memory int32) error {
		_, err := shared.functions().UpdateFunctionConfiguration(t.Context(), &mayflyv1.UpdateFunctionConfigurationRequest{
			Name: "rev", ExpectedRevision: revision, Configuration: &mayflyv1.FunctionConfiguration{MemoryMb: memory},
		})
		return err
	}
	if err := update(f.GetMeta().GetRevision(), 256); err != nil {
		t.Fatal(err)
	}
	wantFault(t, update(f.GetMeta().GetRevision(), 512), codes.Aborted, "REVISION_CONFLICT")
}

func TestListPages(t *testing.T) {
	for i := range 5 {
		shared.deploy(t, python(fmt.Sprintf("page-%d", i), "def handler(e, c): return 1"))
	}
	var names []string
	for token := ""; ; {
		resp, err := shared.functions().ListFunctions(t.Context(), &mayflyv1.ListFunctionsRequest{PageSize: 2, PageToken: token, NamePrefix: "page-"})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range resp.GetFunctions() {
			names = append(names, f.GetName())
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "page-0 page-1 page-2 page-3 page-4" {
		t.Error(got)
	}
	_, err := shared.functions().ListFunctions(t.Context(), &mayflyv1.ListFunctionsRequest{PageToken: "made up"})
	wantFault(t, err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
}
