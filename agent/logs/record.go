package logs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// A record is one or two lines: byte of kind, uint64 time (Unix nanoseconds), request id and body, each after its
// length as uvarint. START, END and REPORT are kept as numbers and become text when they are read, since every invocation has them.
const (
	recordLine   = 1 // written by the function
	recordNotice = 2 // written by the platform
	recordStart  = 3
	recordReport = 4 // END and REPORT
)

// Report is what the END and REPORT lines of an invocation say.
type Report struct {
	Duration time.Duration
	// Init is the sandbox's init, if this invocation caused it.
	Init        time.Duration
	MemoryMB    int
	MaxMemoryMB int
	// Status is empty for success, else such as "timeout".
	Status string
	// ErrorType is the error's type, for status "error".
	ErrorType string
}

type record struct {
	kind      byte
	time      int64
	requestID []byte
	body      []byte
}

var errCut = errors.New("log record cut short")

func appendRecord(b []byte, kind byte, t int64, requestID string, body []byte) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, uint64(t)) // a time after 1970
	b = binary.AppendUvarint(b, uint64(len(requestID)))
	b = append(b, requestID...)
	b = binary.AppendUvarint(b, uint64(len(body)))
	return append(b, body...)
}

// nextRecord splits the first record off b.
func nextRecord(b []byte) (record, []byte, error) {
	if len(b) < 9 {
		return record{}, nil, errCut
	}
	r := record{kind: b[0], time: int64(binary.BigEndian.Uint64(b[1:]))} // written from an int64
	var err error
	if r.requestID, b, err = nextBytes(b[9:]); err != nil {
		return record{}, nil, err
	}
	if r.body, b, err = nextBytes(b); err != nil {
		return record{}, nil, err
	}
	return r, b, nil
}

func nextBytes(b []byte) (part, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) { // w is at most len(b)
		return nil, nil, errCut
	}
	b = b[w:]
	return b[:n], b[n:], nil
}

func appendReport(b []byte, r Report) []byte {
	for _, v := range []int64{int64(r.Duration), int64(r.Init), int64(r.MemoryMB), int64(r.MaxMemoryMB)} {
		b = binary.AppendUvarint(b, uint64(max(v, 0)))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Status)))
	b = append(b, r.Status...)
	return append(b, r.ErrorType...)
}

func parseReport(b []byte) (Report, error) {
	var n [4]int64
	for i := range n {
		v, w := binary.Uvarint(b)
		if w <= 0 || v > math.MaxInt64 {
			return Report{}, errCut
		}
		n[i], b = int64(v), b[w:]
	}
	status, rest, err := nextBytes(b)
	return Report{
		Duration: time.Duration(n[0]), Init: time.Duration(n[1]),
		MemoryMB: int(n[2]), MaxMemoryMB: int(n[3]), Status: string(status), ErrorType: string(rest),
	}, err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// text is Lambda's REPORT line.
func (r Report) text(requestID string) string {
	var b strings.Builder
	billed := int64(math.Ceil(milliseconds(r.Duration)))
	fmt.Fprintf(&b, "REPORT RequestId: %s\tDuration: %.2f ms\tBilled Duration: %d ms\tMemory Size: %d MB\tMax Memory Used: %d MB\t",
		requestID, milliseconds(r.Duration), billed, r.MemoryMB, r.MaxMemoryMB)
	if r.Init > 0 {
		fmt.Fprintf(&b, "Init Duration: %.2f ms\t", milliseconds(r.Init))
	}
	if r.Status != "" {
		fmt.Fprintf(&b, "Status: %s\t", r.Status)
	}
	if r.ErrorType != "" {
		fmt.Fprintf(&b, "Error Type: %s\t", r.ErrorType)
	}
	return b.String()
}

// texts are the lines of a record, without their ends.
func (r record) texts(version string) []string {
	id := string(r.requestID)
	switch r.kind {
	case recordStart:
		return []string{"START RequestId: " + id + " Version: " + version}
	case recordReport:
		report, err := parseReport(r.body)
		if err != nil {
			return []string{"END RequestId: " + id}
		}
		return []string{"END RequestId: " + id, report.text(id)}
	}
	return []string{strings.ToValidUTF8(string(r.body), "\uFFFD")}
}

// logLines are the lines of a record as the API has them.
func (r record) logLines(stream, version string) []*mayflyv1.LogLine {
	kind := mayflyv1.LogKind_LOG_KIND_PLATFORM
	if r.kind == recordLine {
		kind = mayflyv1.LogKind_LOG_KIND_FUNCTION
	}
	texts := r.texts(version)
	lines := make([]*mayflyv1.LogLine, len(texts))
	for i, text := range texts {
		lines[i] = &mayflyv1.LogLine{
			Time: timestamppb.New(time.Unix(0, r.time)), RequestId: string(r.requestID),
			LogStream: stream, Version: version, Kind: kind, Text: text,
		}
	}
	return lines
}
