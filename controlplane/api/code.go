package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// maxInlineZip is the largest zip_file; larger ones are uploaded first.
	maxInlineZip = 4 << 20
	// maxPackage is the largest zip: no package that unpacks to maxUnpacked needs more.
	maxPackage    = maxUnpacked
	maxChunk      = 1 << 20
	downloadChunk = 256 << 10
	// maxInspected bounds the memory of packages that were found good.
	maxInspected = 4096
)

// packages takes in deployment packages, and remembers which were inspected: a digest's content never changes.
type packages struct {
	blobs Blobs
	// busy holds a slot for each inspection that runs: it takes a processor for up to a second.
	busy chan struct{}

	mu       sync.Mutex
	unpacked map[string]int64
}

func newPackages(blobs Blobs, parallel int) *packages {
	return &packages{blobs: blobs, busy: make(chan struct{}, parallel), unpacked: map[string]int64{}}
}

// inline stores a zip that came within a request. A bad one never reaches the disk.
func (p *packages) inline(ctx context.Context, zip []byte) (*mayflyv1.Code, error) {
	if len(zip) > maxInlineZip {
		return nil, codeTooLarge("zip_file has %d bytes; at most %d are allowed: use UploadCode and code_digest", len(zip), maxInlineZip)
	}
	return p.store(ctx, bytes.NewReader(zip), maxInlineZip, int64(len(zip)))
}

// store takes in a zip of at most limit bytes, and of exactly announced bytes if that isn't 0.
func (p *packages) store(ctx context.Context, r io.Reader, limit, announced int64) (*mayflyv1.Code, error) {
	var unpacked int64
	digest, size, err := p.blobs.PutChecked(ctx, r, limit, func(content io.ReaderAt, size int64) (err error) {
		if announced != 0 && size != announced {
			return invalidCode("size_bytes announced %d bytes, but %d came", announced, size)
		}
		unpacked, err = p.inspect(ctx, content, size)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.remember(digest, unpacked)
	return &mayflyv1.Code{Digest: digest, SizeBytes: size, UnpackedSizeBytes: unpacked}, nil
}

// stored finds an uploaded package, keeps it from being collected, and inspects it if it isn't known to be good.
func (p *packages) stored(ctx context.Context, digest string) (*mayflyv1.Code, error) {
	if err := checkDigest("code_digest", digest); err != nil {
		return nil, err
	}
	if err := p.blobs.Touch(digest); err != nil {
		return nil, err
	}
	f, size, err := p.blobs.Open(digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unpacked, known := p.recall(digest)
	if !known {
		if unpacked, err = p.inspect(ctx, f, size); err != nil {
			return nil, err
		}
		p.remember(digest, unpacked)
	}
	return &mayflyv1.Code{Digest: digest, SizeBytes: size, UnpackedSizeBytes: unpacked}, nil
}

func (p *packages) inspect(ctx context.Context, content io.ReaderAt, size int64) (int64, error) {
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return inspectZip(ctx, content, size)
}

func (p *packages) remember(digest string, unpacked int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.unpacked) >= maxInspected {
		clear(p.unpacked)
	}
	p.unpacked[digest] = unpacked
}

func (p *packages) recall(digest string) (int64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	unpacked, ok := p.unpacked[digest]
	return unpacked, ok
}

// UploadCode stores a package. What is refused leaves nothing behind.
func (s *functionService) UploadCode(stream grpc.ClientStreamingServer[mayflyv1.UploadCodeRequest, mayflyv1.UploadCodeResponse]) error {
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return invalidCode("the upload is empty")
	}
	if err != nil {
		return err
	}
	announced := first.GetSizeBytes()
	if announced < 0 {
		return invalid("size_bytes %d is negative", announced)
	}
	if announced > maxPackage {
		return codeTooLarge("size_bytes %d is more than a deployment package may have, which is %d", announced, maxPackage)
	}
	upload := &uploadReader{stream: stream}
	if err := upload.take(first.GetChunk()); err != nil {
		return err
	}
	code, err := s.packages.store(stream.Context(), upload, maxPackage, announced)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&mayflyv1.UploadCodeResponse{Code: code})
}

// uploadReader reads the chunks of an upload.
type uploadReader struct {
	stream grpc.ClientStreamingServer[mayflyv1.UploadCodeRequest, mayflyv1.UploadCodeResponse]
	chunk  []byte
	total  int64
}

func (u *uploadReader) Read(p []byte) (int, error) {
	for len(u.chunk) == 0 {
		request, err := u.stream.Recv()
		if err != nil {
			return 0, err
		}
		if request.GetSizeBytes() != 0 {
			return 0, invalid("size_bytes belongs into the first message only")
		}
		if err := u.take(request.GetChunk()); err != nil {
			return 0, err
		}
	}
	n := copy(p, u.chunk)
	u.chunk = u.chunk[n:]
	return n, nil
}

func (u *uploadReader) take(chunk []byte) error {
	if len(chunk) > maxChunk {
		return invalid("chunk has %d bytes; at most %d are allowed", len(chunk), maxChunk)
	}
	if u.total += int64(len(chunk)); u.total > maxPackage {
		return codeTooLarge("the deployment package has more than %d bytes", maxPackage)
	}
	u.chunk = chunk
	return nil
}

// DownloadCode streams a package as it was uploaded.
func (s *functionService) DownloadCode(r *mayflyv1.DownloadCodeRequest, stream grpc.ServerStreamingServer[mayflyv1.DownloadCodeResponse]) error {
	view := s.View()
	fn, _, err := function(stream.Context(), view, r.GetNamespace(), "name", r.GetName())
	if err != nil {
		return err
	}
	qualifier, err := checkQualifier("qualifier", r.GetQualifier())
	if err != nil {
		return err
	}
	code, err := codeOf(view, fn, qualifier)
	if err != nil {
		return err
	}
	f, _, err := s.Blobs.Open(code.GetDigest())
	if err != nil {
		return err
	}
	defer f.Close()
	return sendChunks(f, stream)
}

func sendChunks(r io.Reader, stream grpc.ServerStreamingServer[mayflyv1.DownloadCodeResponse]) error {
	for {
		// Not reused: gRPC may still read the last one.
		chunk := make([]byte, downloadChunk)
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			if err := stream.Send(&mayflyv1.DownloadCodeResponse{Chunk: chunk[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fault.Internal(err, "the deployment package can't be read")
		}
	}
}

func codeTooLarge(format string, args ...any) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_CODE_TOO_LARGE, format, args...)
}
