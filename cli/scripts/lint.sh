#!/bin/sh
# Checks proto and Go.
set -eu
cd "$(dirname "$0")/../.."
. cli/scripts/tool.sh

buf lint
# A shallow clone may have no main to compare with.
if git rev-parse --verify --quiet origin/main >/dev/null 2>&1; then
	buf breaking proto --against '.git#ref=origin/main,subdir=proto'
fi
go vet ./...
golangci_lint run ./...
