package fleet

import (
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
)

// withSecrets is spec with the values of the secrets that its version refers to. They are read from one view, together
// with the check that they are those of the spec's revision. Nobody but the agent gets to see the result.
func (f *Fleet) withSecrets(spec *agentv1.SandboxSpec, key versionKey) (*agentv1.SandboxSpec, error) {
	if key.secrets == 0 {
		return spec, nil
	}
	view := f.cfg.View()
	if !key.current(view) {
		return nil, replaced(key)
	}
	c, _, _ := key.configuration(view)
	spec = proto.CloneOf(spec)
	spec.SecretEnvironment, spec.SecretFiles = map[string]string{}, map[string][]byte{}
	for variable, name := range c.GetSecretEnvironment() {
		value, err := f.openSecret(view, key, name)
		if err != nil {
			return nil, err
		}
		spec.SecretEnvironment[variable] = string(value)
	}
	for _, name := range c.GetSecretFiles() {
		value, err := f.openSecret(view, key, name)
		if err != nil {
			return nil, err
		}
		spec.SecretFiles[name] = value
	}
	return spec, nil
}

func (f *Fleet) openSecret(view View, key versionKey, name string) ([]byte, error) {
	record, _ := view.Secret(key.Namespace, name) // it exists: key is current
	value, err := f.cfg.OpenSecret(record)
	if err != nil {
		return nil, fault.Internal(err, "secret %q of function %q in namespace %q can't be read", name, key.Name, key.Namespace)
	}
	return value, nil
}
