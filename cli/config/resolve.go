package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// ErrNoContext says that nothing tells which Mayfly is meant.
var ErrNoContext = errors.New("no context: nothing says which Mayfly to talk to")

// ErrUnknownContext says that a context is named that the file does not have.
var ErrUnknownContext = errors.New("there is no context")

// Overrides is what flags say; empty fields say nothing.
type Overrides struct {
	Context   string
	Endpoint  string
	Namespace string
}

// Resolve finds the context in use. Flags win over the environment (MAYFLY_CONTEXT, MAYFLY_ENDPOINT, MAYFLY_CA,
// MAYFLY_ACCESS_KEY, MAYFLY_NAMESPACE), the environment over the file. It returns ErrNoContext if no endpoint is known.
func Resolve(f *File, o Overrides, getenv func(string) string) (Context, error) {
	name := first(o.Context, getenv("MAYFLY_CONTEXT"), f.Current)
	c, ok := f.Contexts[name]
	if name != "" && !ok {
		return Context{}, fmt.Errorf("%w %q (there are: %s)", ErrUnknownContext, name, known(f))
	}
	c.Endpoint = first(o.Endpoint, getenv("MAYFLY_ENDPOINT"), c.Endpoint)
	c.Namespace = first(o.Namespace, getenv("MAYFLY_NAMESPACE"), c.Namespace)
	if err := c.overrideSecrets(getenv); err != nil {
		return Context{}, err
	}
	if c.Endpoint == "" {
		return Context{}, ErrNoContext
	}
	return c, nil
}

func (c *Context) overrideSecrets(getenv func(string) string) error {
	if ca := getenv("MAYFLY_CA"); ca != "" {
		pem, err := PEM(ca)
		if err != nil {
			return fmt.Errorf("MAYFLY_CA: %w", err)
		}
		c.CA = pem
	}
	if key := getenv("MAYFLY_ACCESS_KEY"); key != "" {
		id, secret, ok := strings.Cut(key, ":")
		if !ok {
			return errors.New("MAYFLY_ACCESS_KEY must be ID:SECRET, it has no colon")
		}
		c.AccessKeyID, c.SecretAccessKey = id, secret
	}
	return nil
}

// PEM returns s if it is PEM, else the content of the file that it names.
func PEM(s string) (string, error) {
	if strings.Contains(s, "-----BEGIN") {
		return s, nil
	}
	text, err := os.ReadFile(s)
	if err != nil {
		return "", fmt.Errorf("neither PEM nor a file that can be read: %w", err)
	}
	return string(text), nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func known(f *File) string {
	if len(f.Contexts) == 0 {
		return "none"
	}
	return strings.Join(f.Names(), ", ")
}
