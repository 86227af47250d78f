# Everything that one does with a checkout. `make` alone lists it; what takes more than a few lines is in cli/scripts.

STATE_DIR    ?= /var/lib/mayfly
RUN_DIR      ?= /run/mayfly
API_ADDRESS  ?= 127.0.0.1:7070
RAFT_ADDRESS ?= 127.0.0.1:7071
HTTP_ADDRESS ?= 127.0.0.1:7080
# Further flags of `mayfly up`, such as --containerd /run/containerd/containerd.sock.
UP_FLAGS     ?=
# How long `make up` waits for Mayfly to be healthy, in seconds.
UP_TIMEOUT   ?= 60
OUT          ?= bench.json
FUZZTIME     ?= 30s

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mayfly
TOOLS   ?= $(CACHE)/tools
# Runtime images that tests and bench share; sandboxes must be able to pass its parents.
RUNTIMES_DIR ?= /var/cache/mayfly/runtimes

# The tree may be no checkout, or one whose owner git distrusts: versions come from VERSION alone.
export GOFLAGS := -buildvcs=false $(GOFLAGS)
export STATE_DIR RUN_DIR API_ADDRESS RAFT_ADDRESS HTTP_ADDRESS UP_FLAGS UP_TIMEOUT TOOLS RUNTIMES_DIR

.DEFAULT_GOAL := help

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: up
up: ## install what is missing, build, start Mayfly, deploy and call hello-world (needs root)
	@cli/scripts/up.sh

.PHONY: down
down: ## stop what `make up` started, keep its state
	@cli/scripts/down.sh

.PHONY: reset
reset: ## stop it and wipe its state
	@cli/scripts/down.sh --wipe

.PHONY: build
build: helper ## build bin/mayfly
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/mayfly ./cli/mayfly

# PID 1 of every sandbox; bin/mayfly embeds it.
.PHONY: helper
helper:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o agent/containerd/helper/bin/mayfly-init ./agent/containerd/helper

.PHONY: generate
generate: helper ## generate code from proto, format, generate the reference
	@cli/scripts/generate.sh

.PHONY: check-generated
check-generated: generate ## fail if generated files are not up to date
	@git diff --exit-code -- proto docs/reference && test -z "$$(git status --porcelain -- proto docs/reference)" || \
		{ echo "generated files are not up to date: run make generate and commit" >&2; exit 1; }

.PHONY: lint
lint: helper ## buf lint, go vet, golangci-lint
	@cli/scripts/lint.sh

.PHONY: test
test: build ## install what tests need, run them all (containers need root)
	@cli/scripts/test.sh

.PHONY: test-long
test-long: build ## the same tests, with the long ones
	@MAYFLY_TEST_LONG=1 cli/scripts/test.sh

.PHONY: bench
bench: build ## measure, print and write JSON: make bench OUT=FILE (needs root)
	@bin/mayfly runtime build python3.11 --quiet --runtimes-dir $(RUNTIMES_DIR)
	go run ./test/bench -runtimes-dir $(RUNTIMES_DIR) -out $(OUT)

.PHONY: bench-short
bench-short: build ## the same in seconds: that it works, not what it says
	@bin/mayfly runtime build python3.11 --quiet --runtimes-dir $(RUNTIMES_DIR)
	go run ./test/bench -runtimes-dir $(RUNTIMES_DIR) -warmup 200ms -duration 1s -rounds 1 -cold 3

.PHONY: fuzz
fuzz: helper ## run every fuzz test for FUZZTIME
	@cli/scripts/fuzz.sh $(FUZZTIME)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin agent/containerd/helper/bin/mayfly-init
