#!/bin/sh
# Stops what `make up` started; with --wipe its state goes too.
set -eu
cd "$(dirname "$0")/../.."
. cli/scripts/common.sh

case "${1:-}" in --wipe) what="make reset" ;; *) what="make down" ;; esac
need_root "$what"
if [ ! -x bin/mayfly ]; then
	need_go
	make --no-print-directory build >"$BUILD_LOG" 2>&1 || { cat "$BUILD_LOG" >&2; exit 1; }
fi
bin/mayfly down --state-dir "$STATE_DIR" --run-dir "$RUN_DIR" "$@"
