package api

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Runtimes whose handlers have a form of their own.
const (
	runtimeRuby     = "ruby3.1"
	runtimeJava     = "java17"
	runtimeProvided = "provided"
)

// runtimeNames are the runtimes that functions may name.
func runtimeNames() []string {
	return []string{"python3.11", "python3.13", "nodejs18", "nodejs20", runtimeRuby, runtimeJava, runtimeProvided}
}

// Limits and defaults of a function's configuration, as AWS Lambda documents them.
const (
	minMemoryMB       = 128
	maxMemoryMB       = 10240
	defaultTimeout    = 3 * time.Second
	maxTimeout        = 900 * time.Second
	minStorageMB      = 512
	maxStorageMB      = 10240
	maxDescription    = 256
	maxHandler        = 128
	maxEnvironment    = 4096
	maxTags           = 50
	maxTagKey         = 128
	maxTagValue       = 256
	reservedTagPrefix = "aws:"
	defaultHandler    = "bootstrap"
)

// completeConfiguration returns a checked copy with defaults filled.
func completeConfiguration(in *mayflyv1.FunctionConfiguration) (*mayflyv1.FunctionConfiguration, error) {
	if in == nil {
		return nil, invalid("configuration is missing: give at least runtime and handler")
	}
	c := proto.CloneOf(in)
	if c.MemoryMb == 0 {
		c.MemoryMb = minMemoryMB
	}
	if c.Timeout == nil {
		c.Timeout = durationpb.New(defaultTimeout)
	}
	if c.EphemeralStorageMb == 0 {
		c.EphemeralStorageMb = minStorageMB
	}
	if c.Egress == mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED {
		c.Egress = mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET
	}
	if c.Runtime == runtimeProvided && c.Handler == "" {
		c.Handler = defaultHandler
	}
	return c, checkConfiguration(c)
}

// checkConfiguration checks a complete configuration.
func checkConfiguration(c *mayflyv1.FunctionConfiguration) error {
	if err := checkRuntime(c.GetRuntime()); err != nil {
		return err
	}
	if err := checkHandler(c.GetRuntime(), c.GetHandler()); err != nil {
		return err
	}
	if mb := c.GetMemoryMb(); mb < minMemoryMB || mb > maxMemoryMB {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_MEMORY, "memory_mb %d is not between %d and %d", mb, minMemoryMB, maxMemoryMB)
	}
	if err := checkTimeout(c.GetTimeout()); err != nil {
		return err
	}
	if mb := c.GetEphemeralStorageMb(); mb < minStorageMB || mb > maxStorageMB {
		return invalid("ephemeral_storage_mb %d is not between %d and %d", mb, minStorageMB, maxStorageMB)
	}
	if err := checkEgress("egress", c.GetEgress()); err != nil {
		return err
	}
	if err := checkDescription(c.GetDescription()); err != nil {
		return err
	}
	if err := checkEnvironment(c.GetEnvironment()); err != nil {
		return err
	}
	return checkSecretRefs(c)
}

func checkRuntime(name string) error {
	if names := runtimeNames(); !slices.Contains(names, name) {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_RUNTIME, "runtime %.100q is not one of %s", name, strings.Join(names, ", "))
	}
	return nil
}

// checkHandler wants "module.function" for Python, Node.js and Ruby, where the module may be in folders; "package.Class::method" or
// "package.Class" for Java; anything short without spaces for provided.
func checkHandler(runtime, handler string) error {
	if len(handler) > maxHandler || handler == "" || strings.ContainsFunc(handler, isSpaceOrControl) {
		return invalidHandler("handler %.200q is not 1 to %d characters without spaces", handler, maxHandler)
	}
	switch runtime {
	case runtimeProvided:
		return nil
	case runtimeJava:
		return checkJavaHandler(handler)
	}
	dot := strings.LastIndexByte(handler, '.')
	if dot < 1 || dot == len(handler)-1 || handler[0] == '/' || handler[dot-1] == '/' || strings.Contains(handler[dot:], "/") {
		return invalidHandler("handler %q is not \"module.function\", as runtime %s needs it", handler, runtime)
	}
	if slices.Contains(strings.Split(handler[:dot], "/"), "..") || strings.Contains(handler, "\\") {
		return invalidHandler("handler %q leads out of the deployment package", handler)
	}
	return nil
}

func checkJavaHandler(handler string) error {
	class, method, named := strings.Cut(handler, "::")
	if class == "" || named && method == "" || strings.ContainsAny(class, "/\\:") || strings.ContainsAny(method, "/\\:.") {
		return invalidHandler("handler %q is neither \"package.Class::method\" nor \"package.Class\", as runtime %s needs it", handler, runtimeJava)
	}
	return nil
}

func invalidHandler(format string, args ...any) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_HANDLER, format, args...)
}

func isSpaceOrControl(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xa0 || r == utf8.RuneError }

func checkTimeout(d *durationpb.Duration) error {
	timeout := d.AsDuration()
	if d.CheckValid() != nil || timeout < time.Second || timeout > maxTimeout || timeout%time.Second != 0 {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_TIMEOUT, "timeout %v is not a whole number of seconds between 1 and %d", timeout, maxTimeout/time.Second)
	}
	return nil
}

// checkEgress takes unspecified for what was never said.
func checkEgress(field string, p mayflyv1.EgressPolicy) error {
	if _, ok := mayflyv1.EgressPolicy_name[int32(p)]; !ok {
		return invalid("%s %d is no egress policy", field, p)
	}
	return nil
}

func checkDescription(text string) error {
	if n := utf8.RuneCountInString(text); n > maxDescription {
		return invalid("description has %d characters; at most %d are allowed", n, maxDescription)
	}
	return nil
}

func checkEnvironment(environment map[string]string) error {
	size := 0
	// In order, so that the same request always gets the same error.
	for _, key := range sortedKeys(environment) {
		value := environment[key]
		size += len(key) + len(value)
		if err := checkEnvironmentKey("environment", key); err != nil {
			return err
		}
		if strings.ContainsRune(value, 0) {
			return invalid("environment: the value of %q contains a NUL", key)
		}
	}
	if size > maxEnvironment {
		return invalid("environment has %d bytes in all; at most %d are allowed", size, maxEnvironment)
	}
	return nil
}

func checkEnvironmentKey(field, key string) error {
	if !isEnvironmentKey(key) {
		return invalid("%s: %.100q is not a letter followed by letters, digits and \"_\"", field, key)
	}
	if isReservedEnvironmentKey(key) {
		return invalid("%s: %q is reserved: the platform sets it", field, key)
	}
	return nil
}

func isEnvironmentKey(key string) bool {
	return isName(key, maxEnvironment) && !strings.Contains(key, "-") && key[0] != '_' && (key[0] < '0' || key[0] > '9')
}

// isReservedEnvironmentKey tells of the variables that the platform sets itself; the list is AWS Lambda's.
func isReservedEnvironmentKey(key string) bool {
	switch key {
	case "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR":
		return true
	case "AWS_LAMBDA_EXEC_WRAPPER":
		return false
	}
	return strings.HasPrefix(key, "AWS_LAMBDA_")
}

func checkTags(tags map[string]string) error {
	if len(tags) > maxTags {
		return invalid("%d tags are given; at most %d are allowed", len(tags), maxTags)
	}
	for _, key := range sortedKeys(tags) {
		if n := utf8.RuneCountInString(key); n < 1 || n > maxTagKey {
			return invalid("tags: key %.200q is not 1 to %d characters", key, maxTagKey)
		}
		if strings.HasPrefix(key, reservedTagPrefix) {
			return invalid("tags: key %.200q begins with %q, which is reserved", key, reservedTagPrefix)
		}
		if n := utf8.RuneCountInString(tags[key]); n > maxTagValue {
			return invalid("tags: the value of %q has %d characters; at most %d are allowed", key, n, maxTagValue)
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
