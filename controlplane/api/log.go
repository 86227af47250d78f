package api

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	maxLogFilter = 1024
	maxRequestID = 64
)

type logService struct {
	mayflyv1.UnimplementedLogServiceServer
	*core
}

// ReadLogs streams a function's log.
func (s *logService) ReadLogs(r *mayflyv1.ReadLogsRequest, stream grpc.ServerStreamingServer[mayflyv1.ReadLogsResponse]) error {
	_, ns, err := function(stream.Context(), s.View(), r.GetNamespace(), "function", r.GetFunction())
	if err != nil {
		return err
	}
	if err := checkLogQuery(r); err != nil {
		return err
	}
	query := proto.CloneOf(r)
	query.Namespace = ns.GetName()
	return s.Fleet.ReadLogs(stream.Context(), query, stream.Send)
}

func checkLogQuery(r *mayflyv1.ReadLogsRequest) error {
	since, until := r.GetSince(), r.GetUntil()
	for field, t := range map[string]*timestamppb.Timestamp{"since": since, "until": until} {
		if t != nil && !t.IsValid() {
			return invalid("%s is not a valid time", field)
		}
	}
	if since != nil && until != nil && until.AsTime().Before(since.AsTime()) {
		return invalid("until %v is before since %v", until.AsTime(), since.AsTime())
	}
	if r.GetLimit() < 0 {
		return invalid("limit %d is negative; 0 is all lines", r.GetLimit())
	}
	if n := len(r.GetFilter()); n > maxLogFilter {
		return invalid("filter has %d bytes; at most %d are allowed", n, maxLogFilter)
	}
	if n := len(r.GetRequestId()); n > maxRequestID {
		return invalid("request_id has %d bytes; at most %d are allowed", n, maxRequestID)
	}
	return nil
}
