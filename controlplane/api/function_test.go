package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	invalidArgument = mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT
	badName         = mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME
	invalidHandler  = mayflyv1.ErrorReason_ERROR_REASON_INVALID_HANDLER
	invalidRuntime  = mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME
	invalidMemory   = mayflyv1.ErrorReason_ERROR_REASON_INVALID_MEMORY
	invalidTimeout  = mayflyv1.ErrorReason_ERROR_REASON_INVALID_TIMEOUT
	badCode         = mayflyv1.ErrorReason_ERROR_REASON_INVALID_CODE
	tooLargeCode    = mayflyv1.ErrorReason_ERROR_REASON_CODE_TOO_LARGE
	noFunction      = mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND
	noVersion       = mayflyv1.ErrorReason_ERROR_REASON_VERSION_NOT_FOUND
	noAlias         = mayflyv1.ErrorReason_ERROR_REASON_ALIAS_NOT_FOUND
	noNamespace     = mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_NOT_FOUND
	noCode          = mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND
	exists          = mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS
	revision        = mayflyv1.ErrorReason_ERROR_REASON_REVISION_CONFLICT
	inUse           = mayflyv1.ErrorReason_ERROR_REASON_IN_USE
	permission      = mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED
	unauthenticated = mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED
)

func TestCreateFunctionFillsDefaults(t *testing.T) {
	b := newBench(t)
	fn := b.admin.create(t, "hello-world")
	c := fn.GetConfiguration()
	if c.GetMemoryMb() != 128 || c.GetTimeout().AsDuration() != 3*time.Second || c.GetEphemeralStorageMb() != 512 ||
		c.GetEgress() != mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET {
		t.Errorf("configuration %v", c)
	}
	if fn.GetArn() != "arn:aws:lambda:us-east-1:000000000000:function:hello-world" || fn.GetNamespace() != "default" || fn.GetState() != mayflyv1.FunctionState_FUNCTION_STATE_PENDING {
		t.Errorf("function %v", fn)
	}
	if code := fn.GetCode(); !strings.HasPrefix(code.GetDigest(), "sha256:") || code.GetSizeBytes() != int64(len(helloZip(t))) || code.GetUnpackedSizeBytes() != 47 {
		t.Errorf("code %v", code)
	}
	request := createRequest(t, "go")
	request.Configuration = &mayflyv1.FunctionConfiguration{Runtime: "provided"}
	request.Publish = true
	request.Url = &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE, Qualifier: "$LATEST"}
	response, err := b.admin.function.CreateFunction(testContext(t), request)
	if err != nil {
		t.Fatal(err)
	}
	if got := response.GetFunction(); got.GetConfiguration().GetHandler() != "bootstrap" || got.GetUrl().GetInvokeMode() != mayflyv1.InvokeMode_INVOKE_MODE_BUFFERED || got.GetLastVersion() != 1 {
		t.Errorf("function %v", got)
	}
}

// TestCreateFunctionRefuses goes through the bad input that a definition can have: a typed error that names field and value, and nothing left behind.
func TestCreateFunctionRefuses(t *testing.T) {
	type request = mayflyv1.CreateFunctionRequest
	type configuration = mayflyv1.FunctionConfiguration
	configured := func(change func(c *configuration)) func(*request) {
		return func(r *request) { change(r.Configuration) }
	}
	url := func(u *mayflyv1.FunctionUrl) func(*request) { return func(r *request) { r.Url = u } }
	cors := func(c *mayflyv1.Cors) func(*request) {
		return url(&mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE, Cors: c})
	}
	environment := func(key, value string) func(*request) {
		return configured(func(c *configuration) { c.Environment = map[string]string{key: value} })
	}
	zipped := func(zip []byte) func(*request) {
		return func(r *request) { r.Code = &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: zip} }
	}
	tests := map[string]struct {
		change func(*request)
		reason mayflyv1.ErrorReason
		words  []string
	}{
		"no name":           {func(r *request) { r.Name = "" }, badName, []string{"name"}},
		"name with space":   {func(r *request) { r.Name = "a b" }, badName, []string{`"a b"`}},
		"name with slash":   {func(r *request) { r.Name = "../x" }, badName, []string{`"../x"`}},
		"long name":         {func(r *request) { r.Name = strings.Repeat("x", 65) }, badName, []string{"64"}},
		"name not ASCII":    {func(r *request) { r.Name = "grün" }, badName, nil},
		"bad namespace":     {func(r *request) { r.Namespace = "UPPER" }, badName, []string{"namespace", "UPPER"}},
		"star namespace":    {func(r *request) { r.Namespace = "*" }, badName, []string{"namespace"}},
		"no namespace":      {func(r *request) { r.Namespace = "nowhere" }, noNamespace, []string{"nowhere"}},
		"no configuration":  {func(r *request) { r.Configuration = nil }, invalidArgument, []string{"configuration"}},
		"no runtime":        {configured(func(c *configuration) { c.Runtime = "" }), invalidRuntime, []string{"python3.11", "nodejs18", "provided"}},
		"unknown runtime":   {configured(func(c *configuration) { c.Runtime = "python2.7" }), invalidRuntime, []string{"python2.7"}},
		"no handler":        {configured(func(c *configuration) { c.Handler = "" }), invalidHandler, []string{"handler"}},
		"handler, no dot":   {configured(func(c *configuration) { c.Handler = "hello" }), invalidHandler, []string{"hello", "module.function"}},
		"handler, no name":  {configured(func(c *configuration) { c.Handler = "hello." }), invalidHandler, nil},
		"handler, no file":  {configured(func(c *configuration) { c.Handler = ".hello" }), invalidHandler, nil},
		"handler, dir only": {configured(func(c *configuration) { c.Handler = "dir/.hello" }), invalidHandler, nil},
		"handler outside":   {configured(func(c *configuration) { c.Handler = "../x.handler" }), invalidHandler, []string{"../x.handler"}},
		"handler absolute":  {configured(func(c *configuration) { c.Handler = "/etc/x.handler" }), invalidHandler, nil},
		"handler, space":    {configured(func(c *configuration) { c.Handler = "a b.c" }), invalidHandler, nil},
		"handler, newline":  {configured(func(c *configuration) { c.Handler = "a\n.c" }), invalidHandler, nil},
		"long handler":      {configured(func(c *configuration) { c.Handler = strings.Repeat("x", 127) + ".y" }), invalidHandler, []string{"128"}},
		"little memory":     {configured(func(c *configuration) { c.MemoryMb = 127 }), invalidMemory, []string{"127", "128", "10240"}},
		"negative memory":   {configured(func(c *configuration) { c.MemoryMb = -128 }), invalidMemory, []string{"-128"}},
		"much memory":       {configured(func(c *configuration) { c.MemoryMb = 10241 }), invalidMemory, []string{"10241"}},
		"timeout 0":         {configured(func(c *configuration) { c.Timeout = durationpb.New(0) }), invalidTimeout, []string{"0s"}},
		"timeout negative":  {configured(func(c *configuration) { c.Timeout = durationpb.New(-time.Second) }), invalidTimeout, []string{"-1s"}},
		"timeout 901":       {configured(func(c *configuration) { c.Timeout = durationpb.New(901 * time.Second) }), invalidTimeout, []string{"900"}},
		"timeout 1.5":       {configured(func(c *configuration) { c.Timeout = durationpb.New(1500 * time.Millisecond) }), invalidTimeout, []string{"1.5s", "whole"}},
		"timeout overflow":  {configured(func(c *configuration) { c.Timeout = &durationpb.Duration{Seconds: 1 << 62} }), invalidTimeout, nil},
		"little storage":    {configured(func(c *configuration) { c.EphemeralStorageMb = 511 }), invalidArgument, []string{"ephemeral_storage_mb", "511"}},
		"unknown egress":    {configured(func(c *configuration) { c.Egress = 9 }), invalidArgument, []string{"egress", "9"}},
		"long description":  {configured(func(c *configuration) { c.Description = strings.Repeat("ü", 257) }), invalidArgument, []string{"257", "256"}},
		"environment key":   {environment("1X", "v"), invalidArgument, []string{"1X"}},
		"environment dash":  {environment("A-B", "v"), invalidArgument, []string{"A-B"}},
		"environment empty": {environment("", "v"), invalidArgument, []string{"environment"}},
		"environment =":     {environment("A=B", "v"), invalidArgument, []string{"A=B"}},
		"environment NUL":   {environment("A", "\x00"), invalidArgument, []string{"NUL"}},
		"reserved":          {environment("AWS_REGION", "v"), invalidArgument, []string{"AWS_REGION", "reserved"}},
		"reserved by start": {environment("AWS_LAMBDA_RUNTIME_API", "v"), invalidArgument, []string{"reserved"}},
		"environment size":  {environment("A", strings.Repeat("x", 4096)), invalidArgument, []string{"4097", "4096"}},
		"many tags":         {func(r *request) { r.Tags = manyTags(51) }, invalidArgument, []string{"51", "50"}},
		"reserved tag":      {func(r *request) { r.Tags = map[string]string{"aws:x": "y"} }, invalidArgument, []string{"aws:x"}},
		"long tag":          {func(r *request) { r.Tags = map[string]string{"k": strings.Repeat("x", 257)} }, invalidArgument, []string{"257"}},
		"no code":           {func(r *request) { r.Code = nil }, invalidArgument, []string{"zip_file", "code_digest"}},
		"empty zip_file":    {zipped(nil), badCode, []string{"no zip"}},
		"no zip":            {zipped([]byte("print('hello')")), badCode, []string{"no zip"}},
		"evil zip":          {zipped(zipOf(t, entry{name: "ok.py"}, entry{name: "../evil.py"})), badCode, []string{"../evil.py"}},
		"large zip_file":    {zipped(make([]byte, 4<<20+1)), tooLargeCode, []string{"4194305", "UploadCode"}},
		"bad digest":        {func(r *request) { r.Code = &mayflyv1.CreateFunctionRequest_CodeDigest{CodeDigest: "sha256:x"} }, invalidArgument, []string{"code_digest", "sha256:x"}},
		"unknown digest": {func(r *request) {
			r.Code = &mayflyv1.CreateFunctionRequest_CodeDigest{CodeDigest: "sha256:" + strings.Repeat("0", 64)}
		}, noCode, nil},
		"url without auth":    {url(&mayflyv1.FunctionUrl{}), invalidArgument, []string{"auth_type"}},
		"url with bad mode":   {url(&mayflyv1.FunctionUrl{AuthType: 1, InvokeMode: 9}), invalidArgument, []string{"invoke_mode"}},
		"url of no version":   {url(&mayflyv1.FunctionUrl{AuthType: 1, Qualifier: "1"}), noVersion, []string{"1"}},
		"url of no alias":     {url(&mayflyv1.FunctionUrl{AuthType: 1, Qualifier: "live"}), noAlias, []string{"live"}},
		"url qualifier":       {url(&mayflyv1.FunctionUrl{AuthType: 1, Qualifier: "a/b"}), invalidArgument, []string{"a/b"}},
		"cors origin":         {cors(&mayflyv1.Cors{AllowOrigins: []string{"example.com"}}), invalidArgument, []string{"allow_origins", "example.com"}},
		"cors origin path":    {cors(&mayflyv1.Cors{AllowOrigins: []string{"https://example.com/"}}), invalidArgument, []string{"allow_origins"}},
		"cors origin user":    {cors(&mayflyv1.Cors{AllowOrigins: []string{"https://u@example.com"}}), invalidArgument, []string{"allow_origins"}},
		"cors method":         {cors(&mayflyv1.Cors{AllowMethods: []string{"get"}}), invalidArgument, []string{"allow_methods", "get"}},
		"cors header":         {cors(&mayflyv1.Cors{AllowHeaders: []string{"X-A: b"}}), invalidArgument, []string{"allow_headers"}},
		"cors expose":         {cors(&mayflyv1.Cors{ExposeHeaders: []string{"a\r\nb"}}), invalidArgument, []string{"expose_headers"}},
		"cors age":            {cors(&mayflyv1.Cors{MaxAgeSeconds: 86401}), invalidArgument, []string{"max_age_seconds", "86401"}},
		"cors any with creds": {cors(&mayflyv1.Cors{AllowOrigins: []string{"*"}, AllowCredentials: true}), invalidArgument, []string{"allow_credentials"}},
	}
	b := newBench(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := createRequest(t, "bad")
			test.change(r)
			_, err := b.admin.function.CreateFunction(testContext(t), r)
			wantReason(t, name, err, test.reason, test.words...)
			if n, blobs := b.proposals(), b.blobs.count(t); n != 0 || blobs != 0 {
				t.Fatalf("left behind: %d commands, %d blobs", n, blobs)
			}
		})
	}
}

func manyTags(n int) map[string]string {
	tags := map[string]string{}
	for i := range n {
		tags[fmt.Sprint("tag", i)] = "v"
	}
	return tags
}

func TestCreateFunctionTakesTheEdges(t *testing.T) {
	b := newBench(t)
	r := createRequest(t, strings.Repeat("x", 64))
	r.Configuration = &mayflyv1.FunctionConfiguration{
		Runtime: "nodejs18", Handler: "dist/my.app/index.handler", MemoryMb: 10240, Timeout: durationpb.New(900 * time.Second), EphemeralStorageMb: 10240,
		Description: strings.Repeat("ü", 256), Environment: map[string]string{"A": strings.Repeat("x", 4095-len("AWS_LAMBDA_EXEC_WRAPPER")), "AWS_LAMBDA_EXEC_WRAPPER": ""},
	}
	r.Tags = manyTags(50)
	r.Url = &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_AWS_IAM, Cors: &mayflyv1.Cors{
		AllowOrigins: []string{"http://localhost:3000", "https://[::1]:8443", "https://example.com"}, AllowMethods: []string{"GET", "POST"},
		AllowHeaders: []string{"X-Custom", "content-type"}, ExposeHeaders: []string{"*"}, AllowCredentials: true, MaxAgeSeconds: 86400,
	}}
	if _, err := b.admin.function.CreateFunction(testContext(t), r); err != nil {
		t.Fatal(err)
	}
}

func TestCreateFunctionTwice(t *testing.T) {
	b := newBench(t)
	b.admin.create(t, "hello")
	r := createRequest(t, "hello")
	r.Code = &mayflyv1.CreateFunctionRequest_ZipFile{ZipFile: zipOf(t, entry{name: "other.py", content: "1"})}
	_, err := b.admin.function.CreateFunction(testContext(t), r)
	wantReason(t, "again", err, exists, "hello")
	if n := b.blobs.count(t); n != 1 {
		t.Errorf("%d blobs: the refused code was stored", n)
	}
}

func TestStoreErrorsReachTheCaller(t *testing.T) {
	b := newBench(t)
	for reason, err := range map[mayflyv1.ErrorReason]error{
		mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL: fault.Throttled(mayflyv1.ErrorReason_ERROR_REASON_DISK_FULL, "full"),
		mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER: fmt.Errorf("wrapped: %w", fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER, "none")),
	} {
		b.state.fail = err
		_, got := b.admin.function.CreateFunction(testContext(t), createRequest(t, "x"))
		wantReason(t, reason.String(), got, reason)
		if strings.Contains(got.Error(), "wrapped") {
			t.Errorf("a caller sees what is for the log: %v", got)
		}
	}
}

func TestGetFunction(t *testing.T) {
	b := newBench(t)
	b.addNamespace("team", "123456789012")
	team := b.as(t, mayflyv1.Role_ROLE_DEVELOPER, "team")
	b.admin.create(t, "plain")
	for _, c := range []*client{b.admin, team} {
		r := createRequest(t, "open")
		r.Url = &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE}
		if _, err := c.function.CreateFunction(testContext(t), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		c         *client
		name, url string
	}{{b.admin, "plain", ""}, {b.admin, "open", "http://127.0.0.1:7080/fn/open/"}, {team, "open", "http://127.0.0.1:7080/fn/team/open/"}} {
		got, err := test.c.function.GetFunction(testContext(t), &mayflyv1.GetFunctionRequest{Name: test.name})
		if err != nil || got.GetUrl() != test.url || got.GetFunction().GetName() != test.name {
			t.Errorf("%s: %v, %v", test.name, got, err)
		}
	}
	_, err := b.admin.function.GetFunction(testContext(t), &mayflyv1.GetFunctionRequest{Name: "nobody"})
	wantReason(t, "unknown", err, noFunction, "nobody", "default")
	if status.Code(err) != codes.NotFound {
		t.Errorf("code %v", status.Code(err))
	}
}

func TestListFunctions(t *testing.T) {
	b := newBench(t)
	for i := range 25 {
		r := createRequest(t, fmt.Sprintf("f%02d", i))
		if i%5 == 0 {
			r.Tags = map[string]string{"team": "a", "n": fmt.Sprint(i)}
			r.Configuration.Runtime = "nodejs18"
		}
		if _, err := b.admin.function.CreateFunction(testContext(t), r); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		r    *mayflyv1.ListFunctionsRequest
		want int
	}{
		"all":     {&mayflyv1.ListFunctionsRequest{PageSize: 7}, 25},
		"exactly": {&mayflyv1.ListFunctionsRequest{PageSize: 5}, 25},
		"prefix":  {&mayflyv1.ListFunctionsRequest{PageSize: 3, NamePrefix: "f1"}, 10},
		"runtime": {&mayflyv1.ListFunctionsRequest{PageSize: 2, Runtime: "nodejs18"}, 5},
		"tags":    {&mayflyv1.ListFunctionsRequest{Tags: map[string]string{"team": "a", "n": "10"}}, 1},
		"nothing": {&mayflyv1.ListFunctionsRequest{NamePrefix: "zzz"}, 0},
	} {
		last, n := "", 0
		for pages := 0; ; pages++ {
			response, err := b.admin.function.ListFunctions(testContext(t), test.r)
			if err != nil || pages > 10 {
				t.Fatalf("%s: %d pages, %v", name, pages, err)
			}
			for _, fn := range response.GetFunctions() {
				if fn.GetName() <= last {
					t.Errorf("%s: %s after %s", name, fn.GetName(), last)
				}
				last = fn.GetName()
				n++
			}
			if test.r.PageToken = response.GetNextPageToken(); test.r.PageToken == "" {
				break
			}
			if len(response.GetFunctions()) == 0 {
				t.Errorf("%s: an empty page that isn't the last", name)
			}
		}
		if n != test.want {
			t.Errorf("%s: %d functions, want %d", name, n, test.want)
		}
	}
	first, err := b.admin.function.ListFunctions(testContext(t), &mayflyv1.ListFunctionsRequest{PageSize: 2})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		r      *mayflyv1.ListFunctionsRequest
		reason mayflyv1.ErrorReason
	}{
		"foreign token":   {&mayflyv1.ListFunctionsRequest{PageToken: first.GetNextPageToken(), Runtime: "nodejs18"}, mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN},
		"made-up token":   {&mayflyv1.ListFunctionsRequest{PageToken: "f01"}, mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN},
		"size":            {&mayflyv1.ListFunctionsRequest{PageSize: 1001}, invalidArgument},
		"unknown runtime": {&mayflyv1.ListFunctionsRequest{Runtime: "cobol"}, invalidRuntime},
		"prefix":          {&mayflyv1.ListFunctionsRequest{NamePrefix: "*"}, badName},
	} {
		_, err := b.admin.function.ListFunctions(testContext(t), test.r)
		wantReason(t, name, err, test.reason)
	}
}

func TestUpdateFunctionConfiguration(t *testing.T) {
	b := newBench(t)
	fn := b.admin.create(t, "f")
	update := func(r *mayflyv1.UpdateFunctionConfigurationRequest) (*mayflyv1.Function, error) {
		r.Name = "f"
		response, err := b.admin.function.UpdateFunctionConfiguration(testContext(t), r)
		return response.GetFunction(), err
	}
	got, err := update(&mayflyv1.UpdateFunctionConfigurationRequest{
		Configuration: &mayflyv1.FunctionConfiguration{MemoryMb: 256, Environment: map[string]string{"A": "1"}}, Tags: map[string]string{"k": "v"},
		Replace: []string{"environment", "tags"}, ExpectedRevision: fn.GetMeta().GetRevision(),
	})
	if err != nil || got.GetConfiguration().GetMemoryMb() != 256 || got.GetConfiguration().GetHandler() != "hello.hello_world" || got.GetTags()["k"] != "v" {
		t.Fatalf("%v, %v", got, err)
	}
	got, err = update(&mayflyv1.UpdateFunctionConfigurationRequest{Replace: []string{"environment"}})
	if err != nil || len(got.GetConfiguration().GetEnvironment()) != 0 || got.GetTags()["k"] != "v" {
		t.Fatalf("%v, %v", got, err)
	}
	before := b.proposals()
	for name, test := range map[string]struct {
		r      *mayflyv1.UpdateFunctionConfigurationRequest
		reason mayflyv1.ErrorReason
	}{
		"stale":               {&mayflyv1.UpdateFunctionConfigurationRequest{ExpectedRevision: fn.GetMeta().GetRevision()}, revision},
		"unknown replace":     {&mayflyv1.UpdateFunctionConfigurationRequest{Replace: []string{"memory_mb"}}, invalidArgument},
		"ignored environment": {&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{Environment: map[string]string{"A": "1"}}}, invalidArgument},
		"ignored description": {&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{Description: "x"}}, invalidArgument},
		"ignored tags":        {&mayflyv1.UpdateFunctionConfigurationRequest{Tags: map[string]string{"a": "b"}}, invalidArgument},
		"memory":              {&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{MemoryMb: 1}}, invalidMemory},
		"timeout":             {&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{Timeout: durationpb.New(0)}}, invalidTimeout},
		"handler alone":       {&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{Handler: "bootstrap"}}, invalidHandler},
	} {
		_, err := update(test.r)
		wantReason(t, name, err, test.reason)
	}
	if b.proposals() != before {
		t.Error("a refused update was proposed")
	}
	if _, err := update(&mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{Runtime: "provided", Handler: "bootstrap"}}); err != nil {
		t.Errorf("runtime and handler together: %v", err)
	}
}

func TestUpdateFunctionCode(t *testing.T) {
	b := newBench(t)
	fn := b.admin.create(t, "f")
	zip := zipOf(t, entry{name: "new.py", content: "2"})
	response, err := b.admin.function.UpdateFunctionCode(testContext(t), &mayflyv1.UpdateFunctionCodeRequest{
		Name: "f", Code: &mayflyv1.UpdateFunctionCodeRequest_ZipFile{ZipFile: zip}, ExpectedRevision: fn.GetMeta().GetRevision(),
	})
	if err != nil || response.GetFunction().GetCode().GetDigest() == fn.GetCode().GetDigest() {
		t.Fatalf("%v, %v", response, err)
	}
	blobs := b.blobs.count(t)
	for name, test := range map[string]struct {
		r      *mayflyv1.UpdateFunctionCodeRequest
		reason mayflyv1.ErrorReason
	}{
		"stale": {&mayflyv1.UpdateFunctionCodeRequest{
			Name: "f", Code: &mayflyv1.UpdateFunctionCodeRequest_ZipFile{ZipFile: zipOf(t, entry{name: "x"})}, ExpectedRevision: fn.GetMeta().GetRevision(),
		}, revision},
		"no code":  {&mayflyv1.UpdateFunctionCodeRequest{Name: "f"}, invalidArgument},
		"no zip":   {&mayflyv1.UpdateFunctionCodeRequest{Name: "f", Code: &mayflyv1.UpdateFunctionCodeRequest_ZipFile{ZipFile: []byte("x")}}, badCode},
		"nobody's": {&mayflyv1.UpdateFunctionCodeRequest{Name: "g"}, noFunction},
	} {
		_, err := b.admin.function.UpdateFunctionCode(testContext(t), test.r)
		wantReason(t, name, err, test.reason)
	}
	if n := b.blobs.count(t); n != blobs {
		t.Errorf("%d blobs were left behind", n-blobs)
	}
	// Code that went up before.
	if _, err := b.admin.function.UpdateFunctionCode(testContext(t), &mayflyv1.UpdateFunctionCodeRequest{
		Name: "f", Code: &mayflyv1.UpdateFunctionCodeRequest_CodeDigest{CodeDigest: fn.GetCode().GetDigest()},
	}); err != nil {
		t.Error(err)
	}
}

func TestConcurrencyAndURL(t *testing.T) {
	b := newBench(t)
	b.admin.create(t, "f")
	ctx := testContext(t)
	put, err := b.admin.function.PutFunctionConcurrency(ctx, &mayflyv1.PutFunctionConcurrencyRequest{Name: "f", ReservedConcurrency: 0})
	if err != nil || put.GetFunction().ReservedConcurrency == nil || put.GetFunction().GetReservedConcurrency() != 0 {
		t.Fatalf("%v, %v", put, err)
	}
	removed, err := b.admin.function.DeleteFunctionConcurrency(ctx, &mayflyv1.DeleteFunctionConcurrencyRequest{Name: "f"})
	if err != nil || removed.GetFunction().ReservedConcurrency != nil {
		t.Fatalf("%v, %v", removed, err)
	}
	_, err = b.admin.function.PutFunctionConcurrency(ctx, &mayflyv1.PutFunctionConcurrencyRequest{Name: "f", ReservedConcurrency: -1})
	wantReason(t, "negative", err, invalidArgument, "-1")
	_, err = b.admin.function.PutFunctionConcurrency(ctx, &mayflyv1.PutFunctionConcurrencyRequest{Name: "f", ReservedConcurrency: 1001})
	wantReason(t, "over quota", err, mayflyv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED, "1001", "1000")

	_, err = b.admin.function.PutFunctionUrl(ctx, &mayflyv1.PutFunctionUrlRequest{Name: "f"})
	wantReason(t, "no url", err, invalidArgument, "url")
	_, err = b.admin.function.PutFunctionUrl(ctx, &mayflyv1.PutFunctionUrlRequest{Name: "f", Url: &mayflyv1.FunctionUrl{AuthType: 2, Qualifier: "7"}})
	wantReason(t, "no version", err, noVersion, "7")
	url, err := b.admin.function.PutFunctionUrl(ctx, &mayflyv1.PutFunctionUrlRequest{Name: "f", Url: &mayflyv1.FunctionUrl{AuthType: 2}})
	if err != nil || url.GetUrl() != "http://127.0.0.1:7080/fn/f/" || url.GetFunction().GetUrl().GetAuthType() != mayflyv1.AuthType_AUTH_TYPE_KEY {
		t.Fatalf("%v, %v", url, err)
	}
	gone, err := b.admin.function.DeleteFunctionUrl(ctx, &mayflyv1.DeleteFunctionUrlRequest{Name: "f"})
	if err != nil || gone.GetFunction().GetUrl() != nil {
		t.Fatalf("%v, %v", gone, err)
	}
}

func TestDeleteFunction(t *testing.T) {
	b := newBench(t)
	fn := b.admin.create(t, "f")
	ctx := testContext(t)
	_, err := b.admin.function.DeleteFunction(ctx, &mayflyv1.DeleteFunctionRequest{Name: "f", ExpectedRevision: fn.GetMeta().GetRevision() + 1})
	wantReason(t, "revision", err, revision)
	if _, err := b.admin.function.DeleteFunction(ctx, &mayflyv1.DeleteFunctionRequest{Name: "f"}); err != nil {
		t.Fatal(err)
	}
	_, err = b.admin.function.DeleteFunction(ctx, &mayflyv1.DeleteFunctionRequest{Name: "f"})
	wantReason(t, "again", err, noFunction)
}
