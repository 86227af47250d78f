#!/bin/sh
# Brings Mayfly up on this machine, from a checkout to a function that has been called. Safe to run again.
set -eu
cd "$(dirname "$0")/../.."
. cli/scripts/common.sh

need_root "make up"
need_go

step "Building bin/mayfly"
make --no-print-directory build >"$BUILD_LOG" 2>&1 || { cat "$BUILD_LOG" >&2; exit 1; }

step "Checking this machine"
# Ports are looked at only if Mayfly doesn't have them already.
if running; then addresses=""; else addresses="$API_ADDRESS,$RAFT_ADDRESS,$HTTP_ADDRESS"; fi
bin/mayfly doctor --install --state-dir "$STATE_DIR" --address "$addresses" >"$BUILD_LOG" || { cat "$BUILD_LOG" >&2; exit 1; }

step "Building runtime images (cached after the first time)"
# The others are built when a function needs them.
bin/mayfly runtime build python3.11 nodejs18 provided --state-dir "$STATE_DIR"

if running; then
	step "Mayfly is running already (process $(cat "$RUN_DIR/mayfly.pid"))"
else
	step "Starting Mayfly"
	start
fi
wait_ready

step "Making a context of the admin key"
bin/mayfly context import "$STATE_DIR/server/admin.json"
import_for_sudo_user

step "Deploying docs/examples/hello-python as hello-world"
bin/mayfly deploy docs/examples/hello-python --name hello-world --runtime python3.11 \
	--handler "$(hello_handler)" --description "The example of the README" --url none

url="http://$HTTP_ADDRESS/fn/hello-world/"
step "Calling it by the CLI: bin/mayfly invoke hello-world"
bin/mayfly invoke hello-world
step "Calling it by gRPC: go run ./docs/examples/grpc-client hello-world"
go run ./docs/examples/grpc-client -admin "$STATE_DIR/server/admin.json" hello-world
step "Calling it by HTTP: curl $url"
curl -fsS "$url"
echo

cat <<TEXT

Mayfly is up.
  gRPC API       $API_ADDRESS
  function URLs  http://$HTTP_ADDRESS/fn/NAME/
  state          $STATE_DIR
  log            $STATE_DIR/mayfly.log

Try next:
  bin/mayfly logs hello-world
  bin/mayfly function list
  bin/mayfly deploy hello.py --runtime python3.11 --handler hello.handler --url none
  docs/guides/first-function.md
  make down     stops it and keeps its state; make reset wipes it
TEXT
