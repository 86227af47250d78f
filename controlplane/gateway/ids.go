package gateway

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"time"
)

// newIDs makes a request id (UUID version 4) and, if the client sent no usable one, a trace id in X-Ray's form.
func newIDs(clientTrace string, now time.Time) (requestID, traceID string) {
	var random [28]byte
	_, _ = rand.Read(random[:]) // never fails: it crashes the program instead
	requestID = uuidString(random[:16])
	if usableTrace(clientTrace) {
		return requestID, clientTrace
	}
	return requestID, newTrace(random[16:], now)
}

func uuidString(b []byte) string {
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[0:8], b[0:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:36], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}

// newTrace is "Root=1-" with 8 hexadecimal digits of Unix time and 24 random ones.
func newTrace(random []byte, now time.Time) string {
	var seconds [4]byte
	binary.BigEndian.PutUint32(seconds[:], uint32(now.Unix()))
	b := make([]byte, 0, 40)
	b = append(b, "Root=1-"...)
	b = hex.AppendEncode(b, seconds[:])
	b = append(b, '-')
	return string(hex.AppendEncode(b, random))
}

// usableTrace accepts a client's trace id that is short and names its root.
func usableTrace(s string) bool {
	return len(s) <= 256 && strings.Contains(s, "Root=1-")
}
