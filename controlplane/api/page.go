package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	defaultPageSize = 50
	maxPageSize     = 1000
	// maxPageBytes keeps an answer below the 4 MiB that gRPC clients take by default.
	maxPageBytes = 3 << 20

	tokenVersion = 1
	tokenSum     = 8
)

// page is a checked request for a part of a list.
type page struct {
	size int
	// after is the key of the last item of the page before; empty at first.
	after string
	query string
}

// parsePage checks page_size (1 to 1000, default 50) and page_token. query is all that selects the list's items: a token is good for its own query only.
func parsePage(size int32, token string, query ...string) (page, error) {
	p := page{size: int(size), query: strings.Join(query, "\x00")}
	if size == 0 {
		p.size = defaultPageSize
	}
	if size < 0 || size > maxPageSize {
		return page{}, invalid("page_size %d is not between 1 and %d", size, maxPageSize)
	}
	if token == "" {
		return p, nil
	}
	after, ok := p.open(token)
	if !ok {
		return page{}, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN, "page_token %.100q is not from an answer to this query: begin without one", token)
	}
	p.after = after
	return p, nil
}

func (p page) token(after string) string {
	sum := p.sum(after)
	return base64.RawURLEncoding.EncodeToString(append(append([]byte{tokenVersion}, sum[:tokenSum]...), after...))
}

func (p page) open(token string) (after string, ok bool) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(data) <= 1+tokenSum || data[0] != tokenVersion {
		return "", false
	}
	after = string(data[1+tokenSum:])
	sum := p.sum(after)
	return after, bytes.Equal(data[1:1+tokenSum], sum[:tokenSum])
}

func (p page) sum(after string) [sha256.Size]byte {
	return sha256.Sum256([]byte(p.query + "\x00\x00" + after))
}

// take collects a page of the items that keep wants, and the token of the next page, which is empty if there is none. key is an item's place in the list.
func take[T proto.Message](p page, items iter.Seq[T], key func(T) string, keep func(T) bool) (taken []T, next string) {
	size := 0
	for item := range items {
		if !keep(item) {
			continue
		}
		size += proto.Size(item)
		if len(taken) == p.size || len(taken) > 0 && size > maxPageBytes {
			return taken, p.token(key(taken[len(taken)-1]))
		}
		taken = append(taken, item)
	}
	return taken, ""
}

func all[T any](T) bool { return true }
