package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// extended is a custom runtime with external extensions in its package.
func extended(t testing.TB, name string, extensions ...string) function {
	t.Helper()
	f := custom(name, compile(t, "bootstrap"), "")
	for _, e := range extensions {
		f.files["extensions/"+e] = "#!/bin/sh\nexec /var/task/bootstrap extension " + e + "\n"
	}
	return f
}

// matches tells how many lines match.
func matches(lines []string, pattern string) int {
	n := 0
	for _, l := range lines {
		if regexp.MustCompile(pattern).MatchString(l) {
			n++
		}
	}
	return n
}

func TestExtensionsSeeInvocationsAndShutdown(t *testing.T) {
	shared.deploy(t, extended(t, "ext-good", "one", "two"))
	first := shared.invoke(t, "ext-good", `{"do":"last"}`)
	second := shared.invoke(t, "ext-good", `{"do":"last"}`)
	if first.GetFunctionError() != "" || second.GetFunctionError() != "" {
		t.Fatalf("%s, %s", first.GetPayload(), second.GetPayload())
	}
	shared.replaceCode(t, extended(t, "ext-good", "one", "two")) // its sandbox is not wanted any more
	lines := logOf(t, shared, "ext-good", "two saw SHUTDOWN")
	for _, pattern := range []string{
		`EXTENSION\tName: one\tState: Ready\tEvents: \[INVOKE,SHUTDOWN\]`, `EXTENSION\tName: two\t`,
		`one registered: 200 .*"functionName":"ext-good"`, `two registered: 200 .*"handler":"bootstrap"`,
		`one saw INVOKE ` + first.GetRequestId() + `  \S+s`, `two saw INVOKE ` + first.GetRequestId(),
		`one saw INVOKE ` + second.GetRequestId(), `two saw INVOKE ` + second.GetRequestId(),
		`one saw SHUTDOWN  spindown \S+s`, `two saw SHUTDOWN  spindown`,
	} {
		if matches(lines, pattern) != 1 {
			t.Errorf("%q is not once in the log:\n%s", pattern, strings.Join(lines, "\n"))
		}
	}
}

func TestSlowExtensionDelaysNobodyButTheNextEvent(t *testing.T) {
	f := extended(t, "ext-slow", "slow")
	f.timeout = 10 * time.Second
	shared.deploy(t, f)
	first := shared.invoke(t, "ext-slow", `{"do":"last"}`)
	second := shared.invoke(t, "ext-slow", `{"do":"last"}`)
	lines := logOf(t, shared, "ext-slow", "slow is done with "+second.GetRequestId())
	var at []int
	for _, want := range []string{
		"REPORT RequestId: " + first.GetRequestId(), "slow is done with " + first.GetRequestId(),
		"REPORT RequestId: " + second.GetRequestId(), "slow is done with " + second.GetRequestId(),
	} {
		at = append(at, slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, want) }))
	}
	if at[0] < 0 || !slices.IsSorted(at) {
		t.Errorf("not in order, %v:\n%s", at, strings.Join(lines, "\n"))
	}
}

func TestExtensionsThatFail(t *testing.T) {
	safe := newNeighbour(t, "ext-neighbour")
	for _, c := range []struct{ extension, errorType, message, log string }{
		{"early", "Extension.Crash", "extension early: exit code 9", ""},
		{"sorry", "Extension.InitError", "extension sorry: Extension.NoLicence", ""},
		{"crashing", "Extension.Crash", "extension crashing: exit code 5", "crashing saw INVOKE"},
		{"giving-up", "Extension.ExitError", "extension giving-up: Extension.Tired", "giving-up saw INVOKE"},
		{"silent", "Sandbox.Timedout", "timed out after 3.00 seconds", "Name: silent\tState: Started\tEvents: []\tIt has not registered"},
	} {
		t.Run(c.extension, func(t *testing.T) {
			t.Parallel()
			name := "ext-" + c.extension
			shared.deploy(t, extended(t, name, c.extension))
			e := shared.failure(t, name, `{"do":"hang"}`)
			if e.ErrorType != c.errorType || !strings.Contains(e.ErrorMessage, c.message) {
				t.Errorf("%+v", e)
			}
			logOf(t, shared, name, c.log)
			safe.check(t)
		})
	}
	t.Run("no executable", func(t *testing.T) {
		f := extended(t, "ext-text")
		f.files["extensions/text"] = "\x00no program"
		shared.deploy(t, f)
		if e := shared.failure(t, "ext-text", `{}`); e.ErrorType != "Extension.LaunchError" || !strings.Contains(e.ErrorMessage, "/var/task/extensions/text") {
			t.Errorf("%+v", e)
		}
	})
}

func TestExtensionsAreToldWhyItEnds(t *testing.T) {
	shared.deploy(t, extended(t, "ext-why", "watching"))
	for do, c := range map[string]struct{ errorType, reason string }{
		"hang": {"Sandbox.Timedout", "timeout"}, "exit": {"Runtime.ExitError", "failure"},
	} {
		if e := shared.failure(t, "ext-why", `{"do":"`+do+`"}`); e.ErrorType != c.errorType {
			t.Errorf("%s: %+v", do, e)
		}
		logOf(t, shared, "ext-why", "watching saw SHUTDOWN  "+c.reason)
	}
}

// An extension that doesn't end in time costs its sandbox's last two seconds, and nobody else anything.
func TestStubbornExtensionIsKilled(t *testing.T) {
	shared.deploy(t, extended(t, "ext-stubborn", "stubborn"))
	shared.invoke(t, "ext-stubborn", `{"do":"last"}`)
	e := shared.failure(t, "ext-stubborn", `{"do":"exit"}`)
	if e.ErrorType != "Runtime.ExitError" || !strings.Contains(e.ErrorMessage, "exit status 4") {
		t.Errorf("%+v", e)
	}
	lines := logOf(t, shared, "ext-stubborn", "stubborn saw SHUTDOWN")
	if waited := timeOf(t, lines, "Status: error").Sub(timeOf(t, lines, "stubborn saw SHUTDOWN")); waited > time.Second {
		t.Errorf("the caller waited %s for the extension", waited)
	}
	if resp := shared.invoke(t, "ext-stubborn", `{"do":"last"}`); resp.GetFunctionError() != "" {
		t.Errorf("the next invocation: %s", resp.GetPayload())
	}
}

func TestInternalExtension(t *testing.T) {
	shared.deploy(t, custom("ext-internal", compile(t, "bootstrap"), "internal extension"))
	resp := shared.invoke(t, "ext-internal", `{"do":"last"}`)
	lines := logOf(t, shared, "ext-internal", "inside saw")
	for _, pattern := range []string{
		`internal SHUTDOWN: 403`, `EXTENSION\tName: inside\tState: Ready\tEvents: \[INVOKE\]`,
		`inside saw .*"eventType":"INVOKE".*"requestId":"` + resp.GetRequestId() + `"`,
	} {
		if matches(lines, pattern) != 1 {
			t.Errorf("%q is not once in the log:\n%s", pattern, strings.Join(lines, "\n"))
		}
	}
}

func TestTelemetry(t *testing.T) {
	shared.deploy(t, extended(t, "ext-telemetry", "telemeter"))
	first := shared.invoke(t, "ext-telemetry", `{"do":"print"}`)
	if tail := string(first.GetLogTail()); !strings.Contains(tail, "the function says "+first.GetRequestId()+"\n") {
		t.Errorf("what the function printed before its answer is missing in the log's tail:\n%s", tail)
	}
	failed := shared.invoke(t, "ext-telemetry", `{"do":"error"}`)
	gone := shared.invoke(t, "ext-telemetry", `{"do":"exit"}`)
	lines := logOf(t, shared, "ext-telemetry", "telemeter saw SHUTDOWN")
	for _, pattern := range []string{
		`subscribed: 200 "OK"`, `telemetry platform.initStart {.*"functionName":"ext-telemetry"`,
		`telemetry platform.telemetrySubscription {"name":"telemeter"`, `telemetry platform.initRuntimeDone {.*"status":"success"`,
		`telemetry platform.initReport`, `telemetry platform.extension {"events":\["INVOKE","SHUTDOWN"\],"name":"telemeter","state":"Ready"}`,
		`telemetry platform.start {"requestId":"` + first.GetRequestId(),
		`telemetry function "the function says ` + first.GetRequestId() + `"`,
		`telemetry platform.runtimeDone {.*"requestId":"` + first.GetRequestId() + `".*"status":"success"`,
		`telemetry platform.report {.*"maxMemoryUsedMB":[1-9]\d*,"memorySizeMB":128},"requestId":"` + first.GetRequestId(),
		`telemetry platform.runtimeDone {"errorType":"Odd",.*"requestId":"` + failed.GetRequestId() + `".*"status":"error"`,
		`telemetry platform.runtimeDone {"errorType":"Runtime.ExitError",.*"requestId":"` + gone.GetRequestId() + `".*"status":"failure"`,
	} {
		if matches(lines, pattern) != 1 {
			t.Errorf("%q is not once in the log:\n%s", pattern, strings.Join(lines, "\n"))
		}
	}
}

// timeOf is when the first line with a text was written.
func timeOf(t testing.TB, lines []string, part string) time.Time {
	t.Helper()
	for _, l := range lines {
		if stamp, rest, _ := strings.Cut(l, " "); strings.Contains(rest, part) {
			at, err := time.Parse(time.RFC3339, stamp)
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
	}
	t.Fatalf("no %q in the log:\n%s", part, strings.Join(lines, "\n"))
	return time.Time{}
}

// replaceCode gives a function other code, so that its sandboxes end.
func (in *instance) replaceCode(t testing.TB, f function) {
	t.Helper()
	f.files["changed"] = time.Now().String()
	_, err := in.functions().UpdateFunctionCode(t.Context(), &mayflyv1.UpdateFunctionCodeRequest{
		Name: f.name, Code: &mayflyv1.UpdateFunctionCodeRequest_ZipFile{ZipFile: zipOf(t, f.files)},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.waitActive(t, f.name)
}
