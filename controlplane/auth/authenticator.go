package auth

import (
	"crypto/subtle"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

const (
	bearerPrefix = "Bearer "
	// maxOpened bounds the cache of opened secrets; it starts anew when it is full.
	maxOpened = 65536
	// logEvery is at most how often failed attempts are logged.
	logEvery = 10 * time.Second
)

// AuthenticatorConfig is what an Authenticator works with.
type AuthenticatorConfig struct {
	Keyring *Keyring
	// Lookup finds a stored key in the newest state that this node has.
	Lookup func(id string) (*statev1.AccessKeyRecord, bool)
	Log    *slog.Logger
	// Now is the clock that keys expire by; default time.Now.
	Now func() time.Time
}

// Authenticator proves who calls by access key. A call with a key seen before costs a look-up and a comparison.
type Authenticator struct {
	cfg    AuthenticatorConfig
	opened opened
	failed failures
}

// NewAuthenticator makes one.
func NewAuthenticator(cfg AuthenticatorConfig) *Authenticator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authenticator{cfg: cfg, opened: opened{byID: map[string]openedKey{}}}
}

// Bearer verifies the value of an authorization header or metadata entry: "Bearer ID:SECRET". An unknown id and a wrong secret are told apart by nobody.
func (a *Authenticator) Bearer(header string) (Principal, error) {
	p, err := a.bearer(header)
	if err != nil {
		a.logFailure(header, err)
	}
	return p, err
}

func (a *Authenticator) bearer(header string) (Principal, error) {
	if header == "" {
		return Principal{}, unauthenticated("no access key was given: send the header \"authorization: Bearer ID:SECRET\"")
	}
	id, secret, ok := splitBearer(header)
	if !ok {
		return Principal{}, unauthenticated("the authorization header is not \"Bearer ID:SECRET\"")
	}
	record, known := a.cfg.Lookup(id)
	if !known {
		a.opened.forget(id)
		return Principal{}, wrongKey()
	}
	want, err := a.secret(id, record)
	if err != nil {
		return Principal{}, fault.Internal(err, "the access key can't be checked")
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(secret)) != 1 {
		return Principal{}, wrongKey()
	}
	if why := a.unusable(record); why != "" {
		return Principal{}, unauthenticated("access key %s %s", id, why)
	}
	return principalOf(record), nil
}

// SecretFor returns a usable key's secret, to verify a signature with. Unknown, disabled and expired ids give one and the same error.
func (a *Authenticator) SecretFor(id string) (secret string, p Principal, err error) {
	record, known := a.cfg.Lookup(id)
	if !known {
		a.opened.forget(id)
		return "", Principal{}, wrongKey()
	}
	if a.unusable(record) != "" {
		return "", Principal{}, wrongKey()
	}
	secret, err = a.secret(id, record)
	if err != nil {
		return "", Principal{}, fault.Internal(err, "the access key can't be checked")
	}
	return secret, principalOf(record), nil
}

func (a *Authenticator) unusable(record *statev1.AccessKeyRecord) string {
	key := record.GetAccessKey()
	if key.GetDisabled() {
		return "is disabled"
	}
	if end := key.GetExpiresAt(); end != nil && !a.cfg.Now().Before(end.AsTime()) {
		return "has expired"
	}
	return ""
}

func (a *Authenticator) secret(id string, record *statev1.AccessKeyRecord) (string, error) {
	revision := record.GetAccessKey().GetMeta().GetRevision()
	if secret, ok := a.opened.get(id, revision); ok {
		return secret, nil
	}
	secret, err := a.cfg.Keyring.OpenSecret(record)
	if err != nil {
		return "", err
	}
	a.opened.put(id, openedKey{revision, secret})
	return secret, nil
}

func (a *Authenticator) logFailure(header string, err error) {
	suppressed, due := a.failed.note(a.cfg.Now())
	if !due {
		return
	}
	id, _, _ := splitBearer(header)
	if len(id) > len(idPrefix)+16 {
		id = "" // not an id, perhaps a secret
	}
	a.cfg.Log.Warn("a caller was not authenticated", "key", id, "suppressed", suppressed, "error", err)
}

func splitBearer(header string) (id, secret string, ok bool) {
	if len(header) < len(bearerPrefix) || !strings.EqualFold(header[:len(bearerPrefix)], bearerPrefix) {
		return "", "", false
	}
	id, secret, ok = strings.Cut(header[len(bearerPrefix):], ":")
	return id, secret, ok && id != "" && secret != ""
}

func principalOf(record *statev1.AccessKeyRecord) Principal {
	key := record.GetAccessKey()
	return Principal{KeyID: key.GetId(), Namespace: key.GetNamespace(), Role: key.GetRole()}
}

func wrongKey() error {
	return unauthenticated("the access key is unknown or its secret is wrong")
}

// opened is a cache of secrets. An entry is good for one revision of its key.
type opened struct {
	mu   sync.RWMutex
	byID map[string]openedKey
}

type openedKey struct {
	revision uint64
	secret   string
}

func (o *opened) get(id string, revision uint64) (string, bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	e, ok := o.byID[id]
	return e.secret, ok && e.revision == revision
}

func (o *opened) put(id string, e openedKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.byID) >= maxOpened {
		clear(o.byID)
	}
	o.byID[id] = e
}

// forget takes the write lock only for an id that is there: an unknown one must not slow down the others.
func (o *opened) forget(id string) {
	o.mu.RLock()
	_, ok := o.byID[id]
	o.mu.RUnlock()
	if !ok {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.byID, id)
}

// failures says when a failed attempt may be logged again.
type failures struct {
	mu         sync.Mutex
	next       time.Time
	suppressed int
}

func (f *failures) note(now time.Time) (suppressed int, due bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Before(f.next) {
		f.suppressed++
		return 0, false
	}
	suppressed, f.suppressed = f.suppressed, 0
	f.next = now.Add(logEvery)
	return suppressed, true
}
