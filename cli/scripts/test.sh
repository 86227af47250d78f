#!/bin/sh
# Installs what the tests need, builds the runtime images that they share, and runs them all.
set -eu
cd "$(dirname "$0")/../.."
. cli/scripts/common.sh

need_root "make test"
need_go

# Programs that only tests use, and their packages; what is there is left alone.
missing=""
for p in aws:awscli unzip:unzip gcc:gcc gcc:libc6-dev; do
	command -v "${p%%:*}" >/dev/null 2>&1 || missing="$missing ${p#*:}"
done
/usr/bin/python3 -c 'import boto3' 2>/dev/null || missing="$missing python3-boto3"

bin/mayfly doctor --install --address "" >"$BUILD_LOG" || { cat "$BUILD_LOG" >&2; exit 1; }
if [ -n "$missing" ]; then
	step "Installing for the tests:$missing"
	apt-get -q update || echo "apt-get update failed: trying with the lists that are there" >&2
	# shellcheck disable=SC2086 -- several packages.
	DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends $missing
fi

step "Building runtime images (cached after the first time)"
# Tests find binary and images by these, whatever state directories they use.
MAYFLY_BIN=$PWD/bin/mayfly
MAYFLY_RUNTIMES_DIR=$RUNTIMES_DIR
export MAYFLY_BIN MAYFLY_RUNTIMES_DIR
bin/mayfly runtime build --all --runtimes-dir "$RUNTIMES_DIR"

step "Testing"
go test -race -shuffle=on -timeout 30m ./...
