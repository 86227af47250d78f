package cli

import (
	"fmt"
	"strings"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// egressFlag is a flag for an egress policy.
type egressFlag mayflyv1.EgressPolicy

func egressNames() []string { return []string{"none", "internet", "all"} }

// Set reads a policy's name.
func (e *egressFlag) Set(s string) error {
	for p := range mayflyv1.EgressPolicy_name {
		if p != 0 && s == egressName(mayflyv1.EgressPolicy(p)) {
			*e = egressFlag(p)
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", s, strings.Join(egressNames(), ", "))
}

// String is the policy's name; empty if there is none.
func (e *egressFlag) String() string { return egressName(mayflyv1.EgressPolicy(*e)) }

// Type is what help calls the value.
func (e *egressFlag) Type() string { return "policy" }

func egressName(p mayflyv1.EgressPolicy) string {
	if p == mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED {
		return ""
	}
	return strings.ToLower(enumName(p, "EGRESS_POLICY_"))
}
