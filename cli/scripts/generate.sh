#!/bin/sh
# Generates code from proto, formats, and writes the reference of commands and API.
set -eu
cd "$(dirname "$0")/../.."
. cli/scripts/tool.sh

buf generate --template proto/buf.gen.yaml
golangci_lint fmt ./...
descriptors=$(mktemp)
trap 'rm -f "$descriptors"' EXIT
buf build proto -o "$descriptors#format=binpb"
go run ./cli/reference -descriptors "$descriptors" -out docs/reference
