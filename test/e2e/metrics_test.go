package e2e

import (
	"net/http"
	"strings"
	"testing"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestMetricsTellOfFunctions(t *testing.T) {
	f := python("measured", "def handler(event, context):\n    return 1 / (event['rawPath'] != '/fail')\n")
	f.url = &mayflyv1.FunctionUrl{AuthType: mayflyv1.AuthType_AUTH_TYPE_NONE}
	shared.deploy(t, f)
	for path, want := range map[string]int{"/": http.StatusOK, "/again": http.StatusOK, "/fail": http.StatusBadGateway} {
		if status, body := shared.get(t, "/fn/measured"+path); status != want {
			t.Fatalf("%s: %d %s", path, status, body)
		}
	}
	_, metrics := shared.get(t, "/metrics")
	for _, want := range []string{
		`mayfly_invocations_total{function="measured",namespace="default",outcome="ok"} 2`,
		`mayfly_invocations_total{function="measured",namespace="default",outcome="function_error"} 1`,
		`mayfly_cold_starts_total{function="measured",namespace="default"} 1`,
		`mayfly_invocation_seconds_count{function="measured",namespace="default"} 3`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}
