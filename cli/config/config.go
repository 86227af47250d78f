// Package config keeps the contexts of the command line: which Mayfly to talk to, with which key.
//
// What belongs here: the file, its defaults and what overrides it. What does not: connections (cli).
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Context is one Mayfly and a key for it.
type Context struct {
	// Endpoint is the host:port of the gRPC API.
	Endpoint string `yaml:"endpoint"`
	// CA is the cluster's certificate authority, PEM. Empty: the system's authorities.
	CA string `yaml:"ca,omitempty"`
	// AccessKeyID and SecretAccessKey are the key.
	AccessKeyID     string `yaml:"access_key_id,omitempty"`
	SecretAccessKey string `yaml:"secret_access_key,omitempty"`
	// Namespace is used when a command names none; empty is the key's own.
	Namespace string `yaml:"namespace,omitempty"`
}

// File is the contexts file.
type File struct {
	Current  string             `yaml:"current,omitempty"`
	Contexts map[string]Context `yaml:"contexts,omitempty"`
}

// Path is where the contexts are: $XDG_CONFIG_HOME/mayfly/config.yaml, or below ~/.config.
func Path(getenv func(string) string) (string, error) {
	dir := getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := getenv("HOME")
		if home == "" {
			return "", errors.New("neither XDG_CONFIG_HOME nor HOME is set: set one, contexts are kept there")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "mayfly", "config.yaml"), nil
}

// Load reads the contexts; a file that does not exist has none.
func Load(path string) (*File, error) {
	f := &File{Contexts: map[string]Context{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	if err := yaml.Unmarshal(text, f); err != nil {
		return nil, fmt.Errorf("read contexts in %s: %w: mend the file or remove it", path, err)
	}
	if f.Contexts == nil {
		f.Contexts = map[string]Context{}
	}
	return f, nil
}

// Save writes the contexts for the owner's eyes only; a crash leaves either the old file or the new one.
func (f *File) Save(path string) error {
	text, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	// CreateTemp makes files of mode 0600.
	tmp, err := os.CreateTemp(filepath.Dir(path), "config-*.tmp")
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write contexts: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// Names are the contexts' names, sorted.
func (f *File) Names() []string {
	return slices.Sorted(maps.Keys(f.Contexts))
}
