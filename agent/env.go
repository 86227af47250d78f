package agent

import (
	"encoding/json"
	"maps"
	"strconv"

	"github.com/mayfly-faas/mayfly/agent/frame"
)

const (
	taskRoot   = "/var/task"
	runtimeDir = "/var/runtime"
)

// processEnv is the environment of PID 1; the function's comes with Load. Runtimes that must know their limit at the start
// find it, in MB.
func processEnv(memoryLimit int) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TZ=:UTC", "HOME=/tmp",
		"LAMBDA_TASK_ROOT=" + taskRoot, "LAMBDA_RUNTIME_DIR=" + runtimeDir,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=" + strconv.Itoa(memoryLimit),
	}
}

// functionEnv is the environment of the function: its own variables and secrets, but those that the platform reserves win.
func (b *box) functionEnv() map[string]string {
	s := b.spec
	env := map[string]string{"TZ": ":UTC", "LANG": "C.UTF-8"}
	maps.Copy(env, s.GetEnvironment())
	maps.Copy(env, s.GetSecretEnvironment())
	maps.Copy(env, map[string]string{
		"_HANDLER":                        s.GetHandler(),
		"AWS_REGION":                      s.GetRegion(),
		"AWS_DEFAULT_REGION":              s.GetRegion(),
		"AWS_EXECUTION_ENV":               "AWS_Lambda_" + s.GetRuntime(),
		"AWS_LAMBDA_FUNCTION_NAME":        s.GetFunction(),
		"AWS_LAMBDA_FUNCTION_VERSION":     s.GetVersion(),
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(b.memoryLimit),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_LAMBDA_LOG_GROUP_NAME":       logGroup(s.GetFunction()),
		"AWS_LAMBDA_LOG_STREAM_NAME":      b.stream,
		"LAMBDA_TASK_ROOT":                taskRoot,
		"LAMBDA_RUNTIME_DIR":              runtimeDir,
	})
	return env
}

func logGroup(function string) string { return "/aws/lambda/" + function }

func (b *box) loadFrame() []byte {
	body, _ := json.Marshal(frame.Load{ // a plain struct
		Handler: b.spec.GetHandler(), TaskRoot: taskRoot, Env: b.functionEnv(),
		FunctionName: b.spec.GetFunction(), FunctionVersion: b.spec.GetVersion(), MemoryLimitMB: b.memoryLimit,
		LogGroup: logGroup(b.spec.GetFunction()), LogStream: b.stream,
	})
	return frame.Append(nil, frame.TypeLoad, body)
}
