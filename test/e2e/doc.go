// Package e2e tests Mayfly as its users meet it: the built binary, real containerd sandboxes, the gRPC API, the CLI and
// HTTP. It needs root and a host that `mayfly doctor` is content with.
//
// What belongs here: what a user can see. What does not: anything that needs a room's Go code.
package e2e
