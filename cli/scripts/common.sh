# What the scripts share. Read, not run: the caller has done `set -eu` and is at the top of the checkout.

STATE_DIR=${STATE_DIR:-/var/lib/mayfly}
RUN_DIR=${RUN_DIR:-/run/mayfly}
API_ADDRESS=${API_ADDRESS:-127.0.0.1:7070}
RAFT_ADDRESS=${RAFT_ADDRESS:-127.0.0.1:7071}
HTTP_ADDRESS=${HTTP_ADDRESS:-127.0.0.1:7080}
UP_FLAGS=${UP_FLAGS:-}
UP_TIMEOUT=${UP_TIMEOUT:-60}
BUILD_LOG=$(mktemp)
trap 'rm -f "$BUILD_LOG"' EXIT

step() { printf '==> %s\n' "$*"; }

need_root() {
	[ "$(id -u)" = 0 ] || { echo "$1 needs root (it runs containers): sudo $1" >&2; exit 4; }
}

need_go() {
	command -v go >/dev/null 2>&1 && return
	# sudo resets PATH; this is where Go's own archive is unpacked.
	PATH=$PATH:/usr/local/go/bin
	export PATH
	command -v go >/dev/null 2>&1 || { echo "go is not in PATH: install Go (see README.md), or keep PATH: sudo env PATH=\"\$PATH\" make up" >&2; exit 1; }
}

# running tells whether the Mayfly of RUN_DIR runs.
running() {
	pid=$(cat "$RUN_DIR/mayfly.pid" 2>/dev/null) || return 1
	tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q '^[^ ]*mayfly up '
}

start() {
	mkdir -p "$STATE_DIR" "$RUN_DIR"
	# A session of its own: it outlives this shell and its terminal.
	# shellcheck disable=SC2086 -- UP_FLAGS are several words.
	setsid bin/mayfly up --state-dir "$STATE_DIR" --run-dir "$RUN_DIR" --api-address "$API_ADDRESS" \
		--raft-address "$RAFT_ADDRESS" --http-address "$HTTP_ADDRESS" $UP_FLAGS \
		>>"$STATE_DIR/mayfly.log" 2>&1 </dev/null &
	started=$!
}

# wait_ready waits until Mayfly is healthy, and shows the end of its log if it does not get there.
wait_ready() {
	deadline=$(($(date +%s) + UP_TIMEOUT))
	until curl -fsS -o /dev/null --max-time 2 "http://$HTTP_ADDRESS/readyz" 2>/dev/null; do
		if [ -n "${started:-}" ] && ! kill -0 "$started" 2>/dev/null; then
			fail_start "Mayfly ended before it was ready"
		fi
		[ "$(date +%s)" -lt "$deadline" ] || fail_start "Mayfly is not ready after $UP_TIMEOUT s"
		sleep 0.2
	done
}

fail_start() {
	echo "$1. The end of $STATE_DIR/mayfly.log:" >&2
	tail -n 30 "$STATE_DIR/mayfly.log" >&2
	exit 1
}

# import_for_sudo_user gives the person behind sudo the context, too.
import_for_sudo_user() {
	[ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] || return 0
	command -v runuser >/dev/null 2>&1 || return 0
	home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
	runuser -u "$SUDO_USER" -- env HOME="$home" XDG_CONFIG_HOME= "$PWD/bin/mayfly" context import - <"$STATE_DIR/server/admin.json" ||
		echo "could not make a context for $SUDO_USER: run sudo cat $STATE_DIR/server/admin.json | bin/mayfly context import -" >&2
}

# hello_handler is FILE.hello_world of the example, whatever its file is called.
hello_handler() {
	file=$(grep -l 'def hello_world' docs/examples/hello-python/*.py | head -n 1)
	printf '%s.hello_world\n' "$(basename "$file" .py)"
}
