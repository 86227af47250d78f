package fault_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const notFound = mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND

func TestFromFindsTheFaultWhereverItIs(t *testing.T) {
	here := fault.NotFound(notFound, "no function %q", "f")
	there := here.GRPCStatus().Err()
	for name, err := range map[string]error{
		"itself": here, "wrapped": fmt.Errorf("look: %w", here), "over the wire": there, "wrapped after the wire": fmt.Errorf("look: %w", there),
	} {
		got := fault.From(err)
		if got.Code != codes.NotFound || got.Reason != notFound || got.Message != `no function "f"` {
			t.Errorf("%s: %+v", name, got)
		}
		if !fault.Is(err, notFound) || fault.HTTPStatus(err) != http.StatusNotFound {
			t.Errorf("%s: HTTP status %d", name, fault.HTTPStatus(err))
		}
	}
}

func TestFromOtherErrors(t *testing.T) {
	if fault.From(nil) != nil || fault.Is(nil, notFound) {
		t.Error("no error is no fault")
	}
	cause := errors.New("a secret")
	got := fault.From(cause)
	if got.Code != codes.Internal || got.GRPCStatus().Message() != "internal error" || !errors.Is(got, cause) {
		t.Errorf("%+v", got)
	}
	if got := fault.From(status.Error(codes.Unavailable, "gone")); got.Code != codes.Unavailable || got.Message != "gone" {
		t.Errorf("%+v", got)
	}
}

func TestEveryReasonHasAName(t *testing.T) {
	for number := range mayflyv1.ErrorReason_name {
		reason := mayflyv1.ErrorReason(number)
		err := fault.Conflict(reason, "x").GRPCStatus().Err()
		if fault.From(err).Reason != reason {
			t.Errorf("%s does not survive the wire", reason)
		}
	}
	if got := fault.HTTPStatus(fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE, "x")); got != http.StatusRequestEntityTooLarge {
		t.Errorf("a payload too large is HTTP %d", got)
	}
}
