package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/cli/bundle"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	uploadChunk = 256 << 10
	pollEvery   = 150 * time.Millisecond
)

// deployFlags are what deploy was asked to do.
type deployFlags struct {
	configFlags
	name, url   string
	publish     bool
	wait        bool
	waitTimeout time.Duration
}

// deployment is one run of deploy.
type deployment struct {
	app   *App
	cmd   *cobra.Command
	flags *deployFlags
	c     *client
	pkg   *bundle.Package
}

func (a *App) deployCommand() *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{
		Use: "deploy PATH", Short: "Create a function from code, or update it",
		Long: `Create a function from code, or update it if it exists.

PATH is a file, a folder or a zip. A folder is zipped: always the same way, so that the same files are the same
package; files that its .mayflyignore names (in the language of .gitignore) are left out. A file alone becomes a
package of its own; for the runtime "provided" it is called bootstrap. A zip is taken as it is.

The function's name is that of the folder or file unless --name says otherwise. --runtime and --handler are needed
to create a function (for "provided" the handler may be left out); for an update, what is not given stays.`,
		Example: `  mayfly deploy hello.py --runtime python3.11 --handler hello.handler
  mayfly deploy ./shop --name shop --runtime nodejs18 --handler index.handler --memory 512 --env STAGE=test --url key
  mayfly deploy ./shop --secret DB_PASSWORD=db-password --secret-file tls-key
  mayfly deploy ./bootstrap --name fast --runtime provided`,
		Args: argsNamed("PATH"),
	}
	f.add(a, cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name of the function (default: of the folder or file)")
	flags.StringVar(&f.url, "url", "", "give it a URL with this authentication: none, key or iam")
	flags.BoolVar(&f.publish, "publish", false, "publish a version too")
	flags.BoolVar(&f.wait, "wait", true, "wait until the function is active")
	flags.DurationVar(&f.waitTimeout, "wait-timeout", 10*time.Minute, "how long to wait: the first function of a runtime waits until that is built")
	must(cmd.RegisterFlagCompletionFunc("url", cobra.FixedCompletions(authTypes, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.deploy(cmd, args[0], &f) }
	return cmd
}

func (a *App) deploy(cmd *cobra.Command, path string, f *deployFlags) error {
	if f.url != "" {
		if _, err := authTypeOf(f.url); err != nil {
			return err
		}
	}
	if _, err := os.Stat(path); err != nil {
		return usagef("cannot deploy: %w", err)
	}
	if f.name == "" {
		name, err := nameOf(path)
		if err != nil {
			return err
		}
		f.name = name
	}
	return a.with(cmd, func(ctx context.Context, c *client) error {
		d := &deployment{app: a, cmd: cmd, flags: f, c: c}
		return d.run(ctx, path)
	})
}

// nameOf is the name of a folder, or of a file without its ending.
func nameOf(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", usagef("%s: %w", path, err)
	}
	base := filepath.Base(abs)
	return strings.TrimSuffix(base, filepath.Ext(base)), nil
}

func (d *deployment) run(ctx context.Context, path string) error {
	existing, err := d.find(ctx)
	if err != nil {
		return err
	}
	if err := d.complete(existing); err != nil {
		return err
	}
	pkg, err := bundle.Open(path, bundle.Options{SingleName: d.singleName(existing)})
	if err != nil {
		return err
	}
	d.pkg = pkg
	f, err := d.apply(ctx, existing)
	if err = errors.Join(err, pkg.Close()); err != nil {
		return err
	}
	return d.finish(ctx, f, existing == nil)
}

// find returns the function as it is, nil if there is none.
func (d *deployment) find(ctx context.Context) (*mayflyv1.Function, error) {
	r, err := d.c.functions.GetFunction(ctx, &mayflyv1.GetFunctionRequest{Namespace: d.c.namespace, Name: d.flags.name})
	if fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND) {
		return nil, nil
	}
	return r.GetFunction(), err
}

// complete checks that a new function has all that it needs.
func (d *deployment) complete(existing *mayflyv1.Function) error {
	f := d.flags
	if existing != nil {
		return nil
	}
	if f.runtime == "" {
		return usagef("function %s does not exist yet: --runtime is needed to create it (%s)", f.name, strings.Join(runtimeNames, ", "))
	}
	if f.handler == "" && f.runtime == "provided" {
		f.handler = "bootstrap"
	}
	if f.handler == "" {
		return usagef("function %s does not exist yet: --handler MODULE.FUNCTION is needed to create it", f.name)
	}
	return nil
}

func (d *deployment) singleName(existing *mayflyv1.Function) string {
	runtime := d.flags.runtime
	if runtime == "" {
		runtime = existing.GetConfiguration().GetRuntime()
	}
	if runtime == "provided" {
		return "bootstrap"
	}
	return ""
}

func (d *deployment) apply(ctx context.Context, existing *mayflyv1.Function) (*mayflyv1.Function, error) {
	if existing == nil {
		return d.create(ctx)
	}
	return d.update(ctx, existing)
}

func (d *deployment) create(ctx context.Context) (*mayflyv1.Function, error) {
	if err := d.upload(ctx); err != nil {
		return nil, err
	}
	req := &mayflyv1.CreateFunctionRequest{
		Namespace: d.c.namespace, Name: d.flags.name, Configuration: d.flags.configuration(),
		Code: &mayflyv1.CreateFunctionRequest_CodeDigest{CodeDigest: d.pkg.Digest},
		Tags: d.flags.tags, Publish: d.flags.publish,
	}
	req.Configuration.SecretEnvironment, req.Configuration.SecretFiles = d.flags.secrets.variables, d.flags.secrets.files
	if d.flags.url != "" {
		req.Url = d.urlRequest().Url
	}
	r, err := d.c.functions.CreateFunction(ctx, req)
	return r.GetFunction(), err
}

func (d *deployment) urlRequest() *mayflyv1.PutFunctionUrlRequest {
	auth, err := authTypeOf(d.flags.url)
	must(err) // deploy has checked it.
	return &mayflyv1.PutFunctionUrlRequest{
		Namespace: d.c.namespace, Name: d.flags.name,
		Url: &mayflyv1.FunctionUrl{AuthType: auth, InvokeMode: mayflyv1.InvokeMode_INVOKE_MODE_BUFFERED},
	}
}

// update changes what differs: configuration first, so that new code never runs with the old one.
func (d *deployment) update(ctx context.Context, f *mayflyv1.Function) (*mayflyv1.Function, error) {
	req := d.flags.update(d.cmd)
	if req == nil && d.flags.secrets.given() {
		req = &mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{}}
	}
	if req != nil {
		req.Namespace, req.Name = d.c.namespace, d.flags.name
		if d.flags.secrets.given() {
			if err := d.flags.secrets.apply(req, f); err != nil {
				return nil, err
			}
		}
		r, err := d.c.functions.UpdateFunctionConfiguration(ctx, req)
		if err != nil {
			return nil, err
		}
		f = r.GetFunction()
	}
	f, err := d.updateCode(ctx, f)
	if err != nil {
		return nil, err
	}
	return d.updateURL(ctx, f)
}

func (d *deployment) updateCode(ctx context.Context, f *mayflyv1.Function) (*mayflyv1.Function, error) {
	failed := f.GetState() == mayflyv1.FunctionState_FUNCTION_STATE_FAILED
	if f.GetCode().GetDigest() == d.pkg.Digest && !failed {
		d.app.note("the code is the same as before")
		return f, d.publish(ctx)
	}
	if err := d.upload(ctx); err != nil {
		return nil, err
	}
	r, err := d.c.functions.UpdateFunctionCode(ctx, &mayflyv1.UpdateFunctionCodeRequest{
		Namespace: d.c.namespace, Name: d.flags.name, Publish: d.flags.publish,
		Code: &mayflyv1.UpdateFunctionCodeRequest_CodeDigest{CodeDigest: d.pkg.Digest},
	})
	return r.GetFunction(), err
}

// updateURL leaves a URL that has the wanted authentication as it is: its CORS and qualifier are not deploy's business.
func (d *deployment) updateURL(ctx context.Context, f *mayflyv1.Function) (*mayflyv1.Function, error) {
	if d.flags.url == "" {
		return f, nil
	}
	req := d.urlRequest()
	if u := f.GetUrl(); u != nil {
		auth := req.GetUrl().GetAuthType()
		if u.GetAuthType() == auth {
			return f, nil
		}
		req.Url = proto.CloneOf(u)
		req.Url.AuthType = auth
	}
	r, err := d.c.functions.PutFunctionUrl(ctx, req)
	return r.GetFunction(), err
}

func (d *deployment) publish(ctx context.Context) error {
	if !d.flags.publish {
		return nil
	}
	_, err := d.c.versions.PublishVersion(ctx, &mayflyv1.PublishVersionRequest{Namespace: d.c.namespace, Function: d.flags.name})
	return err
}

// upload streams the package and checks that what arrived is what was sent.
func (d *deployment) upload(ctx context.Context) error {
	stream, err := d.c.functions.UploadCode(ctx)
	if err != nil {
		return err
	}
	bar := d.app.byteBar("uploading", d.pkg.SizeBytes)
	sendErr := d.send(stream.Send, bar)
	bar.finish()
	// After an error of Send the stream's own error is the one that tells why.
	r, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	if sendErr != nil {
		return sendErr
	}
	if got := r.GetCode().GetDigest(); got != d.pkg.Digest {
		return fault.New(codes.DataLoss, mayflyv1.ErrorReason_ERROR_REASON_INTERNAL,
			"the package arrived damaged (%s instead of %s): deploy again", got, d.pkg.Digest)
	}
	return nil
}

func (d *deployment) send(send func(*mayflyv1.UploadCodeRequest) error, bar progress) error {
	if err := send(&mayflyv1.UploadCodeRequest{SizeBytes: d.pkg.SizeBytes}); err != nil {
		return err
	}
	for {
		// A buffer of its own for each message: gRPC may still hold the one before.
		chunk := make([]byte, uploadChunk)
		n, err := io.ReadFull(d.pkg.File, chunk)
		if n > 0 {
			if err := send(&mayflyv1.UploadCodeRequest{Chunk: chunk[:n]}); err != nil {
				return err
			}
			bar.add(int64(n))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the package: %w", err)
		}
	}
}

// finish waits and tells what became of it.
func (d *deployment) finish(ctx context.Context, f *mayflyv1.Function, created bool) error {
	r := &mayflyv1.GetFunctionResponse{Function: f}
	if d.flags.wait {
		var err error
		if r, err = d.await(ctx); err != nil {
			return err
		}
	}
	f = r.GetFunction()
	verb := "Updated"
	if created {
		verb = "Created"
	}
	c := f.GetConfiguration()
	text := fmt.Sprintf("%s function %s (%s, %d MB, %s): %s", verb, f.GetName(), c.GetRuntime(), c.GetMemoryMb(), durationOf(c.GetTimeout()), functionState(f))
	if f.GetLastVersion() > 0 {
		text += fmt.Sprintf("\nVersion %d", f.GetLastVersion())
	}
	if r.GetUrl() != "" {
		text += "\n" + r.GetUrl()
	}
	return d.app.changed(r, f.GetName(), "%s", text)
}

// await polls until the function is active, has failed, or the time is up.
func (d *deployment) await(ctx context.Context) (*mayflyv1.GetFunctionResponse, error) {
	deadline := d.app.Now().Add(d.flags.waitTimeout)
	told := ""
	for {
		r, err := d.c.functions.GetFunction(ctx, &mayflyv1.GetFunctionRequest{Namespace: d.c.namespace, Name: d.flags.name})
		if err != nil {
			return nil, err
		}
		f := r.GetFunction()
		switch {
		case f.GetState() == mayflyv1.FunctionState_FUNCTION_STATE_ACTIVE:
			return r, nil
		case f.GetState() == mayflyv1.FunctionState_FUNCTION_STATE_FAILED:
			return nil, hinted(ExitError, "Mend that and deploy again.", "function %s failed: %s", f.GetName(), f.GetStateReason())
		case d.app.Now().After(deadline):
			return nil, hinted(ExitUnavailable, "It may still become active: `mayfly function get "+f.GetName()+"`. `mayfly node list` tells whether a worker is up.",
				"function %s is still pending after %s: %s", f.GetName(), d.flags.waitTimeout, orDash(f.GetStateReason()))
		}
		if reason := f.GetStateReason(); reason != told {
			told = reason
			d.app.note("pending: %s", reason)
		}
		if err := d.app.Sleep(ctx, pollEvery); err != nil {
			return nil, err
		}
	}
}
